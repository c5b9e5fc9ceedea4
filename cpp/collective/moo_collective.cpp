#include "collective/moo_collective.hpp"

#include <cstring>
#include <utility>

#include "bucket_moo/lanes.hpp"
#include "bucket_moo/solve.hpp"
#include "kernels/combine.hpp"
#include "kernels/gramian.hpp"

namespace bucket_moo {
namespace {

std::size_t packed_size(int k) { return static_cast<std::size_t>(k) * (static_cast<std::size_t>(k) + 1) / 2; }

std::size_t round_up(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

/// Adds the upper triangle of a packed Gramian to a full symmetric one.
void add_packed(const std::byte* packed, int k, std::vector<double>& gramian) {
  for (int i = 0; i < k; ++i) {
    for (int j = i; j < k; ++j) {
      double value = 0.0;
      std::memcpy(&value, packed, sizeof(value));
      packed += sizeof(value);
      gramian[static_cast<std::size_t>(i * k + j)] += value;
      if (i != j) {
        gramian[static_cast<std::size_t>(j * k + i)] += value;
      }
    }
  }
}

void pack(const std::vector<double>& gramian, int k, std::byte* packed) {
  for (int i = 0; i < k; ++i) {
    const std::size_t row = static_cast<std::size_t>(k - i) * sizeof(double);
    std::memcpy(packed, &gramian[static_cast<std::size_t>(i * k + i)], row);
    packed += row;
  }
}

}  // namespace

MooCollective::MooCollective(std::shared_ptr<Transport> transport, Method method)
    : transport_(std::move(transport)),
      method_(method),
      rank_(transport_ ? transport_->rank() : 0),
      world_(transport_ ? transport_->size() : 1),
      rows_(static_cast<std::size_t>(world_)),
      tail_rows_(static_cast<std::size_t>(world_)),
      coefficients_(static_cast<std::size_t>(world_)) {}

void MooCollective::begin_step(const StepRecord& own) {
  std::vector<StepRecord> records(static_cast<std::size_t>(world_));
  records[static_cast<std::size_t>(rank_)] = own;
  if (transport_) {
    transport_->all_gather(reinterpret_cast<std::byte*>(records.data()), sizeof(StepRecord));
  }
  table_ = make_objective_table(records);
  solver_scratch_.resize(solve_scratch_size(table_.k()));
}

BucketSolution MooCollective::all_reduce(void* bucket, std::int64_t n, DType dtype, const RandomKey& key) {
  auto* const bytes = static_cast<std::byte*>(bucket);
  const ShardLayout layout = shard_layout(n, world_, element_size(dtype));
  const std::size_t shard_bytes = static_cast<std::size_t>(layout.shard) * element_size(dtype);
  std::byte* const own_shard = bytes + static_cast<std::size_t>(rank_) * shard_bytes;
  std::byte* const own_tail = bytes + static_cast<std::size_t>(world_) * shard_bytes;

  gather_tile(bytes, shard_bytes);
  const Rows tile{reinterpret_cast<const void* const*>(rows_.data()), world_, layout.shard, dtype};
  const Rows tail{tail_rows_.data(), world_, layout.tail, dtype};
  BucketSolution result = solve_bucket(tile, tail, own_tail, key);
  combine(tile, coefficients_.data(), own_shard);
  combine(tail, coefficients_.data(), own_tail);
  if (transport_) {
    transport_->all_gather(bytes, shard_bytes);
  }
  return result;
}

BucketSolution MooCollective::reduce_scatter(void* output, const void* input, std::int64_t shard, DType dtype,
                                             const RandomKey& key) {
  gather_tile(static_cast<const std::byte*>(input), static_cast<std::size_t>(shard) * element_size(dtype));
  const Rows tile{reinterpret_cast<const void* const*>(rows_.data()), world_, shard, dtype};
  const Rows no_tail{tail_rows_.data(), world_, 0, dtype};
  BucketSolution result = solve_bucket(tile, no_tail, nullptr, key);
  combine(tile, coefficients_.data(), output);
  return result;
}

void MooCollective::gather_tile(const std::byte* input, std::size_t shard_bytes) {
  // The own block stays where it is; the others' lie side by side, each on its own cache lines.
  const std::size_t pitch = round_up(shard_bytes, PersistentBuffer::kAlignment);
  std::byte* row = tile_.reserve(static_cast<std::size_t>(world_ - 1) * pitch);
  for (int r = 0; r < world_; ++r) {
    if (r == rank_) {
      rows_[static_cast<std::size_t>(r)] = const_cast<std::byte*>(input) + static_cast<std::size_t>(r) * shard_bytes;
    } else {
      rows_[static_cast<std::size_t>(r)] = row;
      row += pitch;
    }
  }
  if (transport_) {
    transport_->all_to_all(input, shard_bytes, rows_);
  }
}

BucketSolution MooCollective::solve_bucket(const Rows& tile, const Rows& tail, const std::byte* own_tail,
                                           const RandomKey& key) {
  const int k = table_.k();
  const ObjectiveMap map = table_.map();
  BucketSolution result;
  result.gramian.resize(static_cast<std::size_t>(k) * static_cast<std::size_t>(k));
  result.weights.resize(static_cast<std::size_t>(k));

  // One message a rank: its partial Gramian, then its tail.
  const std::size_t partial_bytes = packed_size(k) * sizeof(double);
  const std::size_t tail_bytes = static_cast<std::size_t>(tail.size) * element_size(tail.dtype);
  const std::size_t message_bytes = round_up(partial_bytes + tail_bytes, sizeof(double));
  std::byte* const messages = messages_.reserve(static_cast<std::size_t>(world_) * message_bytes);
  std::byte* const own = messages + static_cast<std::size_t>(rank_) * message_bytes;
  gramian(tile, map, result.gramian.data());
  pack(result.gramian, k, own);
  if (tail_bytes > 0) {
    std::memcpy(own + partial_bytes, own_tail, tail_bytes);
  }
  std::memset(own + partial_bytes + tail_bytes, 0, message_bytes - partial_bytes - tail_bytes);
  if (transport_) {
    transport_->all_gather(messages, message_bytes);
  }
  for (int r = 0; r < world_; ++r) {
    tail_rows_[static_cast<std::size_t>(r)] = messages + static_cast<std::size_t>(r) * message_bytes + partial_bytes;
  }

  // Rank order and float64: the same sum, to the bit, on every rank.
  gramian(tail, map, result.gramian.data());
  for (int r = 0; r < world_; ++r) {
    add_packed(messages + static_cast<std::size_t>(r) * message_bytes, k, result.gramian);
  }
  result.solution = solve(HostLanes{}, method_, key, k, result.gramian.data(), result.weights.data(),
                          solver_scratch_.data());
  for (std::size_t r = 0; r < coefficients_.size(); ++r) {
    coefficients_[r] = result.weights[static_cast<std::size_t>(table_.objective[r])] * table_.share[r];
  }
  return result;
}

}  // namespace bucket_moo
