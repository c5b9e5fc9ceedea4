// The MOO all-reduce and the MOO reduce-scatter.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "bucket_moo/method.hpp"
#include "bucket_moo/random.hpp"
#include "bucket_moo/solution.hpp"
#include "collective/objectives.hpp"
#include "collective/persistent_buffer.hpp"
#include "collective/shard_layout.hpp"
#include "collective/transport.hpp"
#include "kernels/rows.hpp"

namespace bucket_moo {

/// What was solved for one bucket. The same bits on every rank.
struct BucketSolution {
  std::vector<double> gramian;  ///< [K, K] row-major, inner products of the objectives' gradients in this bucket
  std::vector<double> weights;  ///< [K]
  Solution solution;            ///< status and certificate of the solve
};

/// Conflict-aware reductions of one group of ranks: like all_reduce(mean) and reduce_scatter(mean), but the weights of
/// the sum are solved for from the Gramian of the objectives' gradients in the bucket.
///
/// Per bucket of n elements over W ranks: an all-to-all puts shard r of every rank's gradient on rank r; rank r takes
/// the partial Gramian of its tile; the partial Gramians are all-gathered and summed in rank order in float64, so that
/// every rank solves the same problem to the same bits; rank r combines its tile into its shard of the result; for
/// all_reduce the shards are all-gathered. Wire bytes a rank: 2 n (W-1)/W + O(K^2 W) for all_reduce, half of the first
/// term for reduce_scatter. Scratch, kept between calls: (W-1)/W of the bucket, or `tile_limit` bytes if that is less:
/// the tile then holds a piece of the shard at a time, and all pieces but one are exchanged twice, for the Gramian and
/// for the combination, which makes it at most 3 n (W-1)/W.
///
/// Calls are collective: every rank, same order, one thread at a time. Memory is plain host memory.
/// Source: arXiv 2606.05613 (bucket-level MOO); the reduction is a reduce-scatter followed by an all-gather, as in
/// Thakur, Rabenseifner, Gropp (2005).
class MooCollective {
 public:
  /// `transport` may be null: a group of one rank, no communication.
  MooCollective(std::shared_ptr<Transport> transport, Method method);

  int rank() const { return rank_; }
  int world_size() const { return world_; }

  /// Tells the other ranks this rank's objective and weight, which hold until the next call. To be called before the
  /// first bucket of a step. Raises ValueError on every rank if the ranks do not make the same call.
  void begin_step(const StepRecord& own);

  /// Objectives of the current step.
  const Objectives& objectives() const { return table_; }

  /// Replaces the n elements of `bucket` by sum_k w_k g_k, the same bits on every rank.
  /// `state`: [state_size(method, K)], what the method carries from step to step for this bucket and these objectives,
  /// in and out, the same bits on every rank; nullptr: none, every step is a first step.
  BucketSolution all_reduce(void* bucket, std::int64_t n, DType dtype, const RandomKey& key, std::int64_t tile_limit,
                            double* state = nullptr);

  /// Writes shard rank() of sum_k w_k g_k to `output` (`shard` elements); `input` holds world_size() shards, one after
  /// another, and is only read. `output` may be the own shard of `input`, and must not overlap it otherwise.
  BucketSolution reduce_scatter(void* output, const void* input, std::int64_t shard, DType dtype, const RandomKey& key,
                                std::int64_t tile_limit, double* state = nullptr);

  /// Bytes of scratch memory held.
  std::size_t scratch_bytes() const { return tile_.capacity() + messages_.capacity(); }

 private:
  /// A bucket as one call sees it.
  struct Bucket {
    const std::byte* shards;  // world_ shards, one after another
    const std::byte* tail;    // tail_size elements
    std::byte* shard_out;     // where this rank's shard of the result goes
    std::byte* tail_out;
    std::int64_t shard_size;
    std::int64_t tail_size;
    DType dtype;
    std::int64_t piece;  // elements of the shard in the tile at a time
  };

  BucketSolution reduce(const Bucket& bucket, const RandomKey& key, double* state);
  Rows load_piece(const Bucket& bucket, std::int64_t begin);
  void partial_gramian(const Bucket& bucket, std::vector<double>& sum);
  Rows exchange_partials(const Bucket& bucket, std::vector<double>& gramian);
  void solve_weights(const RandomKey& key, double* state, BucketSolution& result);
  void combine_shard(const Bucket& bucket);

  const std::shared_ptr<Transport> transport_;
  const Method method_;
  const int rank_;
  const int world_;
  Objectives table_;
  PersistentBuffer tile_;               // other ranks' blocks of our shard
  PersistentBuffer messages_;           // [W] of partial Gramian and tail
  std::vector<std::byte*> rows_;        // [W] where each rank's block of our shard lies
  std::vector<const void*> tail_rows_;  // [W] where each rank's tail lies
  std::vector<double> coefficients_;    // [W] of the combination
  std::vector<double> solver_scratch_;
};

}  // namespace bucket_moo
