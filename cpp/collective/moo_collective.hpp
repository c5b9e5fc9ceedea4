// The MOO all-reduce and the MOO reduce-scatter.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "bucket_moo/method.hpp"
#include "bucket_moo/random.hpp"
#include "bucket_moo/solution.hpp"
#include "collective/objective_tile.hpp"
#include "collective/objectives.hpp"
#include "collective/persistent_buffer.hpp"
#include "collective/row_norms.hpp"
#include "collective/sections.hpp"
#include "collective/sharded_bucket.hpp"
#include "collective/step_objectives.hpp"
#include "collective/tile.hpp"
#include "collective/transport.hpp"
#include "kernels/rows.hpp"

namespace bucket_moo {

/// What was solved for one bucket. The same bits on every rank.
struct BucketSolution {
  std::vector<double> gramian;  ///< [K, K] row-major, inner products of the objectives' gradients in this bucket
  std::vector<double> weights;  ///< [K]
  Solution solution;            ///< status and certificate of the solve
  RowNorms norms;               ///< of the rows of the bucket, one part; empty: not asked for
};

/// The Gramian of a tile, and what turns the tile's sums into means.
struct TileGramian {
  BucketSolution solution;     ///< its Gramian
  std::vector<double> shares;  ///< [K]
};

/// The same for every part of a tile.
struct PartGramians {
  std::vector<double> gramians;  ///< [parts, K, K]
  std::vector<double> shares;    ///< [K]
};

/// The sketch of one bucket, on its way to the other ranks.
class SketchedBucket {
 private:
  friend class MooCollective;
  PersistentBuffer columns_;
  ShardedBucket sketch_;  // of columns_: a bucket like any other
  Tile tile_;
};

/// Conflict-aware reductions of one group of ranks: like all_reduce(mean) and reduce_scatter(mean), but the weights of
/// the sum are solved for from the Gramian of the objectives' gradients in the bucket.
///
/// With the exact Gramian, per bucket of n elements over W ranks: an all-to-all puts shard r of every rank's gradient
/// on rank r; rank r takes the partial Gramian of its tile; the partial Gramians are all-gathered and summed in rank
/// order in float64, so that every rank solves the same problem to the same bits; rank r combines its tile into its
/// shard of the result; for all_reduce the shards are all-gathered. Wire bytes a rank: 2 n (W-1)/W + O(K^2 W) for
/// all_reduce, half of the first term for reduce_scatter. Scratch, kept between calls: (W-1)/W of the bucket, or
/// `tile_limit` bytes if that is less: the tile then holds a piece of the shard at a time, and all pieces but one are
/// exchanged twice, for the Gramian and for the combination, which makes it at most 3 n (W-1)/W.
///
/// With a sketch of p columns: start_sketch(), solve_sketched(), then weighted_all_reduce() or
/// weighted_reduce_scatter(), which are also good for weights from elsewhere. The sketch goes through the same
/// exchanges as a bucket of p elements does, for its Gramian; the weighted sum is an ordinary one, a reduce-scatter and
/// an all-gather of small pieces, which are scaled as they are added. Wire bytes a rank: 2 n (W-1)/W + p (W-1)/W +
/// O(K^2 W). Scratch: some sketches and two tiles of kSumTileBytes.
///
/// Where a step has several passes: accumulate() in each, with the same exchanges as a sum over ranks has; after the
/// last one exchange_gramian(), solve() and combine_tile(). Wire bytes a rank: n (W-1)/W a pass, and once more for an
/// all-reduce's last; a tile of K sums of n/W elements.
///
/// Where other ranks hold other pieces of the same gradient, their Gramians are added to this group's, so that all of
/// them use the same weights: those of the whole gradient. That is one more all-gather, of K^2 numbers, after each
/// exchange of partial Gramians.
///
/// Where parts of a bucket get weights of their own, a Gramian of each is formed as the tile is read, and all of them
/// go into the one message.
///
/// Calls are collective: every rank, same order, one thread at a time. Memory is plain host memory.
/// Source: arXiv 2606.05613 (bucket-level MOO); the reduction is a reduce-scatter followed by an all-gather, as in
/// Thakur, Rabenseifner, Gropp (2005).
class MooCollective {
 public:
  /// Bytes of other ranks' blocks that a weighted sum holds, twice: those that come in and those that are added up. Of
  /// the sizes from 0.4 to 100 MB this was fastest over the loopback: small messages cost, large pieces leave the
  /// cache.
  static constexpr std::int64_t kSumTileBytes = 2 << 20;

  /// `transport` may be null: a group of one rank, no communication.
  /// `pieces`: the ranks that hold the other pieces of what this rank reduces, one of each group; null: there are none.
  /// All of these groups make the same calls in the same order, for pieces of any sizes.
  /// `takes_row_norms`: whether the norms of the rows are taken with every Gramian. Rows are then read once more, and
  /// messages have K numbers more for each part.
  MooCollective(std::shared_ptr<Transport> transport, Method method, std::shared_ptr<Transport> pieces = nullptr,
                bool takes_row_norms = false);

  int rank() const { return rank_; }
  int world_size() const { return world_; }

  /// Tells the other ranks this rank's objective and weight, which hold until the next call. To be called before the
  /// first bucket of a pass. Returns the records of all ranks. Raises AgreedError if the ranks do not make the same
  /// call.
  std::vector<StepRecord> begin_pass(const StepRecord& own);

  /// Objectives of the current pass.
  const Objectives& objectives() const { return objectives_; }
  /// What follows is of a pass that has begun already, here or elsewhere, and whose objectives() these are.
  void continue_pass(const Objectives& objectives) { objectives_ = objectives; }

  /// Replaces the bucket's shard and tail by those of sum_k w_k g_k. What all_reduce() does before it gathers the
  /// shards, and all that reduce_scatter() does.
  BucketSolution reduce(const ShardedBucket& bucket, const RandomKey& key, double* state);

  /// The same for a bucket of several parts, in two halves between which no other function is called: the Gramians of
  /// its parts, [parts, K, K], the same bits on every rank; and the combination, with the weights [parts, K] that the
  /// caller has found for them.
  std::vector<double> part_gramians(const ShardedBucket& bucket, const Sections& sections);
  void combine_parts(const ShardedBucket& bucket, const Sections& sections, std::span<const double> weights);

  /// Those of the newest Gramians, with as many parts; empty: they are not taken.
  const RowNorms& row_norms() const { return norms_; }

  /// Replaces the n elements of `bucket` by sum_k w_k g_k, the same bits on every rank.
  /// `state`: [state_size(method, K)], what the method carries from step to step for this bucket and these objectives,
  /// in and out, the same bits on every rank; nullptr: none, every step is a first step.
  BucketSolution all_reduce(void* bucket, std::int64_t n, DType dtype, const RandomKey& key, std::int64_t tile_limit,
                            double* state = nullptr);

  /// Writes shard rank() of sum_k w_k g_k to `output` (`shard` elements); `input` holds world_size() shards, one after
  /// another, and is only read. `output` may be the own shard of `input`, and must not overlap it otherwise.
  BucketSolution reduce_scatter(void* output, const void* input, std::int64_t shard, DType dtype, const RandomKey& key,
                                std::int64_t tile_limit, double* state = nullptr);

  /// Adds every rank's row of the bucket, which has these sections, to the tile, which was begun for it.
  void accumulate(const ShardedBucket& bucket, const PassRows& pass, const Sections& sections, ObjectiveTile& tile);

  /// The Gramian of a bucket's tile, over all shards, after the last pass: closes the tile. Weights are yet to be
  /// solved for. The same bits on every rank.
  TileGramian exchange_gramian(ObjectiveTile& tile, const StepObjectives& objectives);
  /// The same for a tile's parts.
  PartGramians exchange_gramians(ObjectiveTile& tile, const StepObjectives& objectives, const Sections& sections);

  /// Weights and status of `result`, for its Gramian. `key`, `state`: as all_reduce().
  void solve(const RandomKey& key, double* state, BucketSolution& result);

  /// Writes sum_k weights[k] g_k to where the bucket's shard and tail go, g_k = shares[k] times the tile's sum.
  /// `zero_rows`: whether sums of weight 0 are looked at for NaN and Inf.
  void combine_tile(ObjectiveTile& tile, std::span<const double> shares, std::span<const double> weights,
                    ZeroRows zero_rows, const ShardedBucket& bucket);
  /// The same with the weights [parts, K] of its parts.
  void combine_tile(ObjectiveTile& tile, std::span<const double> shares, std::span<const double> weights,
                    const Sections& sections, const ShardedBucket& bucket);

  /// Gathers the shards of a bucket that is reduced in place.
  void all_gather_shards(const ShardedBucket& bucket);

  /// The columns of a bucket's sketch as a bucket, for a tile that is begun for them.
  ShardedBucket sketch_columns(DType dtype, std::int64_t width);

  /// accumulate() for the sketches of the rows. `key`: the same in every pass of a step.
  void accumulate_sketch(const void* row, std::int64_t n, DType dtype, const RandomKey& key, std::int64_t width,
                         const PassRows& pass, ObjectiveTile& tile);

  /// Replaces the n elements of `bucket` by their sum over the ranks: weighted_all_reduce() without weights.
  void sum_all_reduce(void* bucket, std::int64_t n, DType dtype);
  void sum_reduce_scatter(void* output, const void* input, std::int64_t shard, DType dtype);

  /// Sketches the n elements of `bucket` to `width` columns and sends the sketch off, in the sequence `ahead`: other
  /// calls may come between this one and solve_sketched(), even others on other ranks, as long as each kind comes in
  /// the same order. The bucket may change on return. Does not need the step to have begun.
  /// `key`: the same on every rank; `width`: is_sketch_width(width)
  std::unique_ptr<SketchedBucket> start_sketch(const void* bucket, std::int64_t n, DType dtype, const RandomKey& key,
                                               std::int64_t width);

  /// Waits for the sketch and solves for the weights, from the Gramian of the sketches. `key`, `state`: as
  /// all_reduce().
  BucketSolution solve_sketched(std::unique_ptr<SketchedBucket> sketched, const RandomKey& key,
                                double* state = nullptr);

  /// Replaces the n elements of `bucket` by sum_k weights[k] g_k, weights [K], the same bits on every rank.
  /// `zero_rows`: whether gradients of weight 0 are looked at for NaN and Inf. Ranks that are left out never are.
  /// `meanwhile` is called once, while the last exchanges are under way.
  void weighted_all_reduce(
      void* bucket, std::int64_t n, DType dtype, std::span<const double> weights, ZeroRows zero_rows,
      const std::function<void()>& meanwhile = [] {});

  /// Replaces the bucket's shard and tail by those of that sum, the ordinary reduce-scatter in place.
  void weighted_sum(const ShardedBucket& bucket, std::span<const double> weights, ZeroRows zero_rows);

  /// The same for what reduce_scatter() takes.
  void weighted_reduce_scatter(
      void* output, const void* input, std::int64_t shard, DType dtype, std::span<const double> weights,
      ZeroRows zero_rows, const std::function<void()>& meanwhile = [] {});

  /// Bytes of scratch memory held.
  std::size_t scratch_bytes() const;

 private:
  Rows exchange_partials(const ShardedBucket& bucket, const Sections& sections, std::vector<double>& gramians);
  void gather_partials(int k, std::size_t tail_bytes, const std::byte* tail, const std::vector<double>& gramian);
  void begin_row_norms(const Sections& sections);
  void add_row_norms(GramianKernel kernel, const Rows& rows, std::span<const Section> sections);
  void add_partials(int k, std::vector<double>& gramians);
  void add_pieces(const Sections& sections, int k, std::vector<double>& gramians);
  static BucketSolution empty_solution(int k);
  void set_coefficients(std::span<const double> weights);
  void combine_sections(const Rows& rows, std::span<const Section> sections, std::span<const double> weights,
                        std::byte* out);
  void stream_all_reduce(void* bucket, std::int64_t n, DType dtype, ZeroRows zero_rows,
                         const std::function<void()>& meanwhile);
  void stream_shard(const ShardedBucket& bucket, const std::function<void(const Rows& rows, std::int64_t begin)>& use);
  std::unique_ptr<Transport::Exchange> start_tails(const ShardedBucket& bucket);
  void sum_rows(const Rows& rows, ZeroRows zero_rows, void* out);
  std::unique_ptr<Transport::Exchange> start_gather(std::byte* blocks, std::size_t pitch, std::size_t bytes);

  const std::shared_ptr<Transport> transport_;
  const std::shared_ptr<Transport> pieces_;
  const Method method_;
  const bool takes_row_norms_;
  const int rank_;
  const int world_;
  Objectives objectives_;
  Tile tile_;                           // other ranks' blocks of our shard
  Tile next_tile_;                      // the next piece of it
  PersistentBuffer messages_;           // [W] of partial Gramian and tail
  std::size_t message_bytes_ = 0;       // of each
  PersistentBuffer piece_gramians_;     // of every piece
  PersistentBuffer tails_;              // [W] of a sum's tails
  PersistentBuffer columns_;            // of a row's sketch
  std::vector<const void*> tail_rows_;  // [W] where each rank's tail lies
  std::vector<double> coefficients_;    // [W] of the combination
  RowNorms norms_;                      // of the newest Gramians
  std::vector<double> solver_scratch_;
  std::vector<std::unique_ptr<SketchedBucket>> free_sketches_;  // whose memory is used again
};

}  // namespace bucket_moo
