#include "collective/moo_collective.hpp"

#include <algorithm>
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
  table_ = read_objectives(records);
  solver_scratch_.resize(solve_scratch_size(table_.k()));
}

BucketSolution MooCollective::all_reduce(void* bucket, std::int64_t n, DType dtype, const RandomKey& key,
                                         std::int64_t tile_limit, double* state) {
  auto* const bytes = static_cast<std::byte*>(bucket);
  const ShardLayout layout = shard_layout(n, world_, element_size(dtype));
  const std::size_t shard_bytes = static_cast<std::size_t>(layout.shard) * element_size(dtype);
  std::byte* const tail = bytes + static_cast<std::size_t>(world_) * shard_bytes;
  BucketSolution result = reduce({.shards = bytes,
                                  .tail = tail,
                                  .shard_out = bytes + static_cast<std::size_t>(rank_) * shard_bytes,
                                  .tail_out = tail,
                                  .shard_size = layout.shard,
                                  .tail_size = layout.tail,
                                  .dtype = dtype,
                                  .piece = piece_size(layout.shard, world_, element_size(dtype), tile_limit)},
                                 key, state);
  if (transport_) {
    transport_->all_gather(bytes, shard_bytes);
  }
  return result;
}

BucketSolution MooCollective::reduce_scatter(void* output, const void* input, std::int64_t shard, DType dtype,
                                             const RandomKey& key, std::int64_t tile_limit, double* state) {
  return reduce({.shards = static_cast<const std::byte*>(input),
                 .tail = nullptr,
                 .shard_out = static_cast<std::byte*>(output),
                 .tail_out = nullptr,
                 .shard_size = shard,
                 .tail_size = 0,
                 .dtype = dtype,
                 .piece = piece_size(shard, world_, element_size(dtype), tile_limit)},
                key, state);
}

BucketSolution MooCollective::reduce(const Bucket& bucket, const RandomKey& key, double* state) {
  const auto k = static_cast<std::size_t>(table_.k());
  BucketSolution result;
  result.gramian.resize(k * k);
  result.weights.resize(k);
  partial_gramian(bucket, result.gramian);
  const Rows tails = exchange_partials(bucket, result.gramian);
  solve_weights(key, state, result);
  combine_shard(bucket);
  combine(tails, coefficients_.data(), bucket.tail_out);
  return result;
}

Rows MooCollective::load_piece(const Bucket& bucket, std::int64_t begin) {
  const std::size_t element = element_size(bucket.dtype);
  const std::int64_t size = std::min(bucket.piece, bucket.shard_size - begin);
  const std::size_t bytes = static_cast<std::size_t>(size) * element;
  const std::size_t shard_bytes = static_cast<std::size_t>(bucket.shard_size) * element;
  const std::byte* const input = bucket.shards + static_cast<std::size_t>(begin) * element;
  // The own block stays where it is; the others' lie side by side, each on its own cache lines.
  const std::size_t pitch = round_up(bytes, PersistentBuffer::kAlignment);
  std::byte* row = tile_.reserve(static_cast<std::size_t>(world_ - 1) * pitch);
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    if (r == static_cast<std::size_t>(rank_)) {
      rows_[r] = const_cast<std::byte*>(input) + r * shard_bytes;  // only read
    } else {
      rows_[r] = row;
      row += pitch;
    }
  }
  if (transport_) {
    transport_->all_to_all(input, shard_bytes, bytes, rows_);
  }
  return {reinterpret_cast<const void* const*>(rows_.data()), world_, size, bucket.dtype};
}

void MooCollective::partial_gramian(const Bucket& bucket, std::vector<double>& sum) {
  std::vector<double> of_piece(sum.size());
  for (std::int64_t begin = 0; begin < bucket.shard_size; begin += bucket.piece) {
    gramian(load_piece(bucket, begin), table_.map(), of_piece.data());
    for (std::size_t i = 0; i < sum.size(); ++i) {
      sum[i] += of_piece[i];
    }
  }
}

/// On entry `gramian` is this rank's partial one, on return that of the whole bucket; returns the rows of the tail.
Rows MooCollective::exchange_partials(const Bucket& bucket, std::vector<double>& gramian) {
  const int k = table_.k();
  // One message a rank: its partial Gramian, then its tail.
  const std::size_t partial_bytes = packed_size(k) * sizeof(double);
  const std::size_t tail_bytes = static_cast<std::size_t>(bucket.tail_size) * element_size(bucket.dtype);
  const std::size_t message_bytes = round_up(partial_bytes + tail_bytes, sizeof(double));
  std::byte* const messages = messages_.reserve(static_cast<std::size_t>(world_) * message_bytes);
  std::byte* const own = messages + static_cast<std::size_t>(rank_) * message_bytes;
  pack(gramian, k, own);
  if (tail_bytes > 0) {
    std::memcpy(own + partial_bytes, bucket.tail, tail_bytes);
  }
  std::memset(own + partial_bytes + tail_bytes, 0, message_bytes - partial_bytes - tail_bytes);
  if (transport_) {
    transport_->all_gather(messages, message_bytes);
  }
  for (std::size_t r = 0; r < tail_rows_.size(); ++r) {
    tail_rows_[r] = messages + r * message_bytes + partial_bytes;
  }
  const Rows tails{tail_rows_.data(), world_, bucket.tail_size, bucket.dtype};

  // Rank order and float64: the same sum, to the bit, on every rank, whatever its processor.
  portable_gramian(tails, table_.map(), gramian.data());
  for (std::size_t r = 0; r < tail_rows_.size(); ++r) {
    add_packed(messages + r * message_bytes, k, gramian);
  }
  return tails;
}

void MooCollective::solve_weights(const RandomKey& key, double* state, BucketSolution& result) {
  result.solution = solve(HostLanes{}, method_, key, table_.k(), result.gramian.data(), result.weights.data(),
                          solver_scratch_.data(), state);
  for (std::size_t r = 0; r < coefficients_.size(); ++r) {
    coefficients_[r] = result.weights[static_cast<std::size_t>(table_.objective[r])] * table_.share[r];
  }
}

void MooCollective::combine_shard(const Bucket& bucket) {
  if (bucket.shard_size == 0) {
    return;
  }
  // Backwards: the last piece is still in the tile, and only its successors need to be exchanged once more.
  const std::int64_t last = (bucket.shard_size - 1) / bucket.piece * bucket.piece;
  for (std::int64_t begin = last; begin >= 0; begin -= bucket.piece) {
    const Rows tile = begin == last ? Rows{reinterpret_cast<const void* const*>(rows_.data()), world_,
                                           bucket.shard_size - last, bucket.dtype}
                                    : load_piece(bucket, begin);
    combine(tile, coefficients_.data(),
            bucket.shard_out + static_cast<std::size_t>(begin) * element_size(bucket.dtype));
  }
}

}  // namespace bucket_moo
