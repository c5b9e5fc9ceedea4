#include "collective/inside_group.hpp"

#include <cstring>
#include <utility>

#include "collective/grouped_records.hpp"
#include "collective/sharded_bucket.hpp"

namespace bucket_moo {
namespace {

/// Of the one objective that a group has.
constexpr double kWhole[] = {1.0};

}  // namespace

InsideGroup::InsideGroup(std::shared_ptr<Transport> transport, RankGrid grid, int rank)
    : transport_(std::move(transport)),
      grid_(std::move(grid)),
      own_(grid_.across_of(rank)),
      sums_(transport_, Method{.id = MethodId::mean}) {}

Objectives InsideGroup::read(std::span<const StepRecord> records) const {
  return read_objectives(grouped_records(records, grid_, grid_.at(own_, rank())).members);
}

std::vector<StepRecord> InsideGroup::groups(std::span<const StepRecord> records) const {
  return grouped_records(records, grid_, grid_.at(own_, rank())).groups;
}

InsideGroup::Part InsideGroup::part(void* bucket, std::int64_t n, DType dtype) const {
  const ShardLayout layout = shard_layout(n, size(), element_size(dtype));
  const auto begin = static_cast<std::size_t>(rank() * layout.shard) * element_size(dtype);
  const bool is_last = rank() == size() - 1;  // whose shard the rest lies behind
  return {static_cast<std::byte*>(bucket) + begin, layout.shard + (is_last ? layout.tail : 0)};
}

void InsideGroup::sum_in_place(void* bucket, std::int64_t n, DType dtype) {
  sums_.weighted_sum(sharded_in_place(bucket, n, dtype, rank(), size(), MooCollective::kSumTileBytes), kWhole,
                     ZeroRows::skip);
}

void InsideGroup::gather_in_place(void* bucket, std::int64_t n, DType dtype) {
  const ShardedBucket sharded = sharded_in_place(bucket, n, dtype, rank(), size(), MooCollective::kSumTileBytes);
  sums_.all_gather_shards(sharded);
  if (const std::size_t bytes = sharded.tail_bytes(); bytes > 0) {  // small: gathered, where one rank has it
    std::byte* const tails = tails_.reserve(static_cast<std::size_t>(size()) * bytes);
    std::memcpy(tails + static_cast<std::size_t>(rank()) * bytes, sharded.tail, bytes);
    transport_->all_gather(tails, bytes);
    std::memcpy(sharded.tail_out, tails + static_cast<std::size_t>(size() - 1) * bytes, bytes);
  }
}

void InsideGroup::sum_to_shard(void* output, const void* input, std::int64_t shard, DType dtype) {
  sums_.weighted_reduce_scatter(output, input, shard, dtype, kWhole, ZeroRows::skip);
}

void InsideGroup::sum_shards_across(const void* input, std::int64_t shard, DType dtype) {
  const std::size_t shard_bytes = static_cast<std::size_t>(shard) * element_size(dtype);
  const std::byte* const ordered = in_order_of_grid(static_cast<const std::byte*>(input), shard_bytes);
  std::byte* const summed = summed_.reserve(static_cast<std::size_t>(grid_.across()) * shard_bytes);
  sum_to_shard(summed, ordered, grid_.across() * shard, dtype);
}

/// First the shards of the across group of the first rank inside, and so on. The input itself where it is so.
const std::byte* InsideGroup::in_order_of_grid(const std::byte* input, std::size_t shard_bytes) {
  bool is_ordered = true;
  int place = 0;
  for (int i = 0; i < grid_.inside; ++i) {
    for (int a = 0; a < grid_.across(); ++a) {
      is_ordered = is_ordered && grid_.at(a, i) == place++;
    }
  }
  if (is_ordered) {
    return input;
  }
  std::byte* const ordered = ordered_.reserve(grid_.ranks.size() * shard_bytes);
  std::byte* next = ordered;
  for (int i = 0; i < grid_.inside; ++i) {
    for (int a = 0; a < grid_.across(); ++a) {
      std::memcpy(next, input + static_cast<std::size_t>(grid_.at(a, i)) * shard_bytes, shard_bytes);
      next += shard_bytes;
    }
  }
  return ordered;
}

std::size_t InsideGroup::scratch_bytes() const {
  return sums_.scratch_bytes() + ordered_.capacity() + summed_.capacity() + tails_.capacity();
}

}  // namespace bucket_moo
