// Of the collective: sums whose weights are known, piece by piece.
#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "collective/memory_layout.hpp"
#include "collective/moo_collective.hpp"
#include "collective/profiler_scope.hpp"
#include "kernels/combine.hpp"

namespace bucket_moo {

void MooCollective::sum_all_reduce(void* bucket, std::int64_t n, DType dtype) {
  if (!transport_) {
    return;
  }
  std::fill(coefficients_.begin(), coefficients_.end(), 1.0);
  stream_all_reduce(bucket, n, dtype, ZeroRows::skip, [] {});
}

void MooCollective::sum_reduce_scatter(void* output, const void* input, std::int64_t shard, DType dtype) {
  const ProfilerScope stage("bucket_moo reduce_scatter");
  std::fill(coefficients_.begin(), coefficients_.end(), 1.0);
  const ShardedBucket sharded = sharded_apart(output, input, shard, dtype, world_, kSumTileBytes);
  stream_shard(sharded, [&](const Rows& rows, std::int64_t begin) {
    sum_rows(rows, ZeroRows::skip, sharded.element_out(begin));
  });
}

void MooCollective::weighted_all_reduce(void* bucket, std::int64_t n, DType dtype, std::span<const double> weights,
                                        ZeroRows zero_rows, const std::function<void()>& meanwhile) {
  set_coefficients(weights);
  stream_all_reduce(bucket, n, dtype, zero_rows, meanwhile);
}

/// With the coefficients that are set.
void MooCollective::stream_all_reduce(void* bucket, std::int64_t n, DType dtype, ZeroRows zero_rows,
                                      const std::function<void()>& meanwhile) {
  const ProfilerScope stage("bucket_moo all_reduce");
  const ShardedBucket sharded = sharded_in_place(bucket, n, dtype, rank_, world_, kSumTileBytes);
  std::vector<std::unique_ptr<Transport::Exchange>> gathers;
  gathers.push_back(start_tails(sharded));
  stream_shard(sharded, [&](const Rows& rows, std::int64_t begin) {
    sum_rows(rows, zero_rows, sharded.element_out(begin));
    // While the piece is in the cache, and while the next ones are on their way.
    const std::size_t element = element_size(dtype);
    gathers.push_back(start_gather(static_cast<std::byte*>(bucket) + static_cast<std::size_t>(begin) * element,
                                   sharded.shard_bytes(), static_cast<std::size_t>(rows.size) * element));
  });
  meanwhile();
  for (const auto& gather : gathers) {
    gather->wait();
  }
  sum_rows({tail_rows_.data(), world_, sharded.tail_size, dtype}, zero_rows, sharded.tail_out);
}

void MooCollective::weighted_sum(const ShardedBucket& bucket, std::span<const double> weights, ZeroRows zero_rows) {
  set_coefficients(weights);
  const auto tails = start_tails(bucket);
  stream_shard(bucket,
               [&](const Rows& rows, std::int64_t begin) { sum_rows(rows, zero_rows, bucket.element_out(begin)); });
  tails->wait();
  sum_rows({tail_rows_.data(), world_, bucket.tail_size, bucket.dtype}, zero_rows, bucket.tail_out);
}

void MooCollective::weighted_reduce_scatter(void* output, const void* input, std::int64_t shard, DType dtype,
                                            std::span<const double> weights, ZeroRows zero_rows,
                                            const std::function<void()>& meanwhile) {
  const ProfilerScope stage("bucket_moo reduce_scatter");
  set_coefficients(weights);
  const ShardedBucket sharded = sharded_apart(output, input, shard, dtype, world_, kSumTileBytes);
  stream_shard(sharded,
               [&](const Rows& rows, std::int64_t begin) { sum_rows(rows, zero_rows, sharded.element_out(begin)); });
  meanwhile();
}

/// One piece is on its way while the one before it is used.
void MooCollective::stream_shard(const ShardedBucket& bucket,
                                 const std::function<void(const Rows& rows, std::int64_t begin)>& use) {
  if (bucket.shard_size == 0) {
    return;
  }
  tile_.start(transport_.get(), Transport::Sequence::main, bucket, 0);
  for (std::int64_t begin = 0; begin < bucket.shard_size; begin += bucket.piece) {
    if (begin + bucket.piece < bucket.shard_size) {
      next_tile_.start(transport_.get(), Transport::Sequence::main, bucket, begin + bucket.piece);
    }
    use(tile_.wait(), begin);
    std::swap(tile_, next_tile_);
  }
}

/// Sends the tail to all; theirs are at tail_rows_.
std::unique_ptr<Transport::Exchange> MooCollective::start_tails(const ShardedBucket& bucket) {
  const std::size_t bytes = bucket.tail_bytes();
  std::byte* const tails = tails_.reserve(static_cast<std::size_t>(world_) * bytes);
  for (std::size_t r = 0; r < tail_rows_.size(); ++r) {
    tail_rows_[r] = tails + r * bytes;
  }
  if (bytes > 0) {
    std::memcpy(tails + static_cast<std::size_t>(rank_) * bytes, bucket.tail, bytes);
  }
  return start_gather(tails, bytes, bytes);
}

/// Adds up the rows of the ranks that are not left out.
void MooCollective::sum_rows(const Rows& rows, ZeroRows zero_rows, void* out) {
  if (zero_rows == ZeroRows::skip) {  // whose coefficients are 0
    combine(rows, coefficients_.data(), out);
    return;
  }
  std::vector<const void*> data;
  std::vector<double> coefficients;
  for (std::size_t r = 0; r < coefficients_.size(); ++r) {
    if (objectives_.share[r] > 0.0) {
      data.push_back(rows.data[r]);
      coefficients.push_back(coefficients_[r]);
    }
  }
  combine({data.data(), static_cast<int>(data.size()), rows.size, rows.dtype}, coefficients.data(), out, zero_rows);
}

std::unique_ptr<Transport::Exchange> MooCollective::start_gather(std::byte* blocks, std::size_t pitch,
                                                                 std::size_t bytes) {
  return transport_ ? transport_->start_all_gather(Transport::Sequence::main, blocks, pitch, bytes)
                    : std::make_unique<Transport::Done>();
}

}  // namespace bucket_moo
