#include "collective/moo_collective.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "bucket_moo/lanes.hpp"
#include "bucket_moo/packed_triangle.hpp"
#include "bucket_moo/solve.hpp"
#include "collective/memory_layout.hpp"
#include "kernels/combine.hpp"
#include "kernels/gramian.hpp"
#include "kernels/sketch.hpp"

namespace bucket_moo {
namespace {

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
      tail_rows_(static_cast<std::size_t>(world_)),
      coefficients_(static_cast<std::size_t>(world_)) {}

void MooCollective::begin_step(const StepRecord& own) {
  std::vector<StepRecord> records(static_cast<std::size_t>(world_));
  records[static_cast<std::size_t>(rank_)] = own;
  if (transport_) {
    transport_->all_gather(reinterpret_cast<std::byte*>(records.data()), sizeof(StepRecord));
  }
  objectives_ = read_objectives(records);
  solver_scratch_.resize(solve_scratch_size(objectives_.k()));
}

BucketSolution MooCollective::all_reduce(void* bucket, std::int64_t n, DType dtype, const RandomKey& key,
                                         std::int64_t tile_limit, double* state) {
  const ShardedBucket sharded = sharded_in_place(bucket, n, dtype, rank_, world_, tile_limit);
  BucketSolution result = reduce(sharded, key, state);
  if (transport_) {
    transport_->all_gather(static_cast<std::byte*>(bucket), sharded.shard_bytes());
  }
  return result;
}

BucketSolution MooCollective::reduce_scatter(void* output, const void* input, std::int64_t shard, DType dtype,
                                             const RandomKey& key, std::int64_t tile_limit, double* state) {
  return reduce(sharded_apart(output, input, shard, dtype, world_, tile_limit), key, state);
}

BucketSolution MooCollective::reduce(const ShardedBucket& bucket, const RandomKey& key, double* state) {
  BucketSolution result = empty_solution();
  partial_gramian(bucket, result.gramian);
  const Rows tails = exchange_partials(bucket, result.gramian);
  solve_weights(key, state, result);
  set_coefficients(result.weights);
  combine_shard(bucket);
  combine(tails, coefficients_.data(), bucket.tail_out);
  return result;
}

BucketSolution MooCollective::empty_solution() const {
  const auto k = static_cast<std::size_t>(objectives_.k());
  BucketSolution result;
  result.gramian.resize(k * k);
  result.weights.resize(k);
  return result;
}

/// The tile holds the last piece on return.
void MooCollective::partial_gramian(const ShardedBucket& bucket, std::vector<double>& sum) {
  std::vector<double> of_piece(sum.size());
  for (std::int64_t begin = 0; begin < bucket.shard_size; begin += bucket.piece) {
    tile_.start(transport_.get(), Transport::Sequence::main, bucket, begin);
    gramian(tile_.wait(), objectives_.map(), of_piece.data());
    for (std::size_t i = 0; i < sum.size(); ++i) {
      sum[i] += of_piece[i];
    }
  }
}

/// On entry `gramian` is this rank's partial one, on return that of the whole bucket; returns the rows of the tail.
Rows MooCollective::exchange_partials(const ShardedBucket& bucket, std::vector<double>& gramian) {
  const int k = objectives_.k();
  // One message a rank: its partial Gramian, then its tail.
  const std::size_t partial_bytes = static_cast<std::size_t>(packed_size(k)) * sizeof(double);
  const std::size_t tail_bytes = bucket.tail_bytes();
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
  portable_gramian(tails, objectives_.map(), gramian.data());
  for (std::size_t r = 0; r < tail_rows_.size(); ++r) {
    add_packed(messages + r * message_bytes, k, gramian);
  }
  return tails;
}

void MooCollective::solve_weights(const RandomKey& key, double* state, BucketSolution& result) {
  result.solution = solve(HostLanes{}, method_, key, objectives_.k(), result.gramian.data(), result.weights.data(),
                          solver_scratch_.data(), state);
}

void MooCollective::set_coefficients(std::span<const double> weights) {
  for (std::size_t r = 0; r < coefficients_.size(); ++r) {
    coefficients_[r] = weights[static_cast<std::size_t>(objectives_.objective[r])] * objectives_.share[r];
  }
}

void MooCollective::combine_shard(const ShardedBucket& bucket) {
  if (bucket.shard_size == 0) {
    return;
  }
  // Backwards: the last piece is still in the tile, and only its successors need to be exchanged once more.
  const std::int64_t last = (bucket.shard_size - 1) / bucket.piece * bucket.piece;
  for (std::int64_t begin = last; begin >= 0; begin -= bucket.piece) {
    if (begin != last) {
      tile_.start(transport_.get(), Transport::Sequence::main, bucket, begin);
    }
    combine(tile_.wait(), coefficients_.data(), bucket.element_out(begin));
  }
}

std::unique_ptr<SketchedBucket> MooCollective::start_sketch(const void* bucket, std::int64_t n, DType dtype,
                                                            const RandomKey& key, std::int64_t width) {
  std::unique_ptr<SketchedBucket> sketched;
  if (free_sketches_.empty()) {
    sketched = std::make_unique<SketchedBucket>();
  } else {
    sketched = std::move(free_sketches_.back());
    free_sketches_.pop_back();
  }
  const DType type = sketch_dtype(dtype);
  const std::int64_t bytes = width * static_cast<std::int64_t>(element_size(type));
  std::byte* const columns = sketched->columns_.reserve(static_cast<std::size_t>(bytes));
  sketch(bucket, n, dtype, SketchMap(key, width), columns);
  sketched->sketch_ = sharded_in_place(columns, width, type, rank_, world_, bytes);
  if (sketched->sketch_.shard_size > 0) {
    sketched->tile_.start(transport_.get(), Transport::Sequence::ahead, sketched->sketch_, 0);
  }
  return sketched;
}

BucketSolution MooCollective::solve_sketched(std::unique_ptr<SketchedBucket> sketched, const RandomKey& key,
                                             double* state) {
  BucketSolution result = empty_solution();
  if (sketched->sketch_.shard_size > 0) {
    gramian(sketched->tile_.wait(), objectives_.map(), result.gramian.data());
  }
  exchange_partials(sketched->sketch_, result.gramian);
  solve_weights(key, state, result);
  free_sketches_.push_back(std::move(sketched));
  return result;
}

void MooCollective::weighted_all_reduce(void* bucket, std::int64_t n, DType dtype, std::span<const double> weights,
                                        ZeroRows zero_rows, const std::function<void()>& meanwhile) {
  const ShardedBucket sharded = sharded_in_place(bucket, n, dtype, rank_, world_, kSumTileBytes);
  set_coefficients(weights);
  const std::size_t tail_bytes = sharded.tail_bytes();
  std::byte* const tails = tails_.reserve(static_cast<std::size_t>(world_) * tail_bytes);
  for (std::size_t r = 0; r < tail_rows_.size(); ++r) {
    tail_rows_[r] = tails + r * tail_bytes;
  }
  if (tail_bytes > 0) {
    std::memcpy(tails + static_cast<std::size_t>(rank_) * tail_bytes, sharded.tail, tail_bytes);
  }
  std::vector<std::unique_ptr<Transport::Exchange>> gathers;
  gathers.push_back(start_gather(tails, tail_bytes, tail_bytes));
  sum_shard(sharded, zero_rows, [&](std::int64_t begin, std::int64_t size) {
    // While the piece is in the cache, and while the next ones are on their way.
    const std::size_t element = element_size(dtype);
    gathers.push_back(start_gather(static_cast<std::byte*>(bucket) + static_cast<std::size_t>(begin) * element,
                                   sharded.shard_bytes(), static_cast<std::size_t>(size) * element));
  });
  meanwhile();
  for (const auto& gather : gathers) {
    gather->wait();
  }
  sum_rows({tail_rows_.data(), world_, sharded.tail_size, dtype}, zero_rows, sharded.tail_out);
}

void MooCollective::weighted_reduce_scatter(void* output, const void* input, std::int64_t shard, DType dtype,
                                            std::span<const double> weights, ZeroRows zero_rows,
                                            const std::function<void()>& meanwhile) {
  set_coefficients(weights);
  sum_shard(sharded_apart(output, input, shard, dtype, world_, kSumTileBytes), zero_rows,
            [](std::int64_t, std::int64_t) {});
  meanwhile();
}

/// One piece is on its way while the one before it is added up; `done` hears of every one that is.
void MooCollective::sum_shard(const ShardedBucket& bucket, ZeroRows zero_rows,
                              const std::function<void(std::int64_t begin, std::int64_t size)>& done) {
  if (bucket.shard_size == 0) {
    return;
  }
  tile_.start(transport_.get(), Transport::Sequence::main, bucket, 0);
  for (std::int64_t begin = 0; begin < bucket.shard_size; begin += bucket.piece) {
    if (begin + bucket.piece < bucket.shard_size) {
      next_tile_.start(transport_.get(), Transport::Sequence::main, bucket, begin + bucket.piece);
    }
    const Rows rows = tile_.wait();
    sum_rows(rows, zero_rows, bucket.element_out(begin));
    done(begin, rows.size);
    std::swap(tile_, next_tile_);
  }
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

std::size_t MooCollective::scratch_bytes() const {
  std::size_t bytes = tile_.capacity() + next_tile_.capacity() + messages_.capacity() + tails_.capacity();
  for (const auto& sketched : free_sketches_) {
    bytes += sketched->columns_.capacity() + sketched->tile_.capacity();
  }
  return bytes;
}

}  // namespace bucket_moo
