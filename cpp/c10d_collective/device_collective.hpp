// The MOO all-reduce and reduce-scatter on a device, from bucket to bucket without the host.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "bucket_moo/method.hpp"
#include "c10d_collective/device_exchange.hpp"
#include "c10d_collective/device_inside.hpp"
#include "c10d_collective/device_memory.hpp"
#include "c10d_collective/device_own_rows.hpp"
#include "c10d_collective/device_parts.hpp"
#include "c10d_collective/device_results.hpp"
#include "c10d_collective/device_step.hpp"
#include "c10d_collective/device_tile.hpp"
#include "c10d_collective/grid_groups.hpp"
#include "collective/memory_layout.hpp"
#include "collective/rank_grid.hpp"
#include "collective/sketch_options.hpp"
#include "kernels/rows.hpp"
#include "rows.cuh"
#include "scale.cuh"
#include "torch_types/device.hpp"

namespace bucket_moo {

/// The sketches of a bucket's objectives: this rank's share, and everybody's once they are added up.
struct DeviceSketches {
  DeviceBuffer memory;
  cuda::DeviceRows rows = {};

  at::Tensor tensor() const;
};

/// Weights of an earlier solve that serve for a bucket. Only in collectives that keep the objectives.
struct KeptWeights {
  const DeviceResult& kept;
  const DeviceResult& used;  // becomes a copy
};

/// A bucket as one call sees it.
struct DeviceBucket {
  at::Tensor shards;     // bytes: a shard for every rank, one after another
  at::Tensor tail;       // bytes of tail_size elements, in and out
  std::byte* shard_out;  // where this rank's shard of the result goes
  std::int64_t shard_size;
  std::int64_t tail_size;
  DType dtype;
  std::int64_t piece;  // elements of the shard in the tile at a time
  std::int64_t index;  // in the step
  bool in_place;       // whether the result takes the place of the shards, and every rank needs all of it
  /// On a grid, where the bucket is a part of this, which the inside group puts together again; else undefined.
  at::Tensor whole = {};
};

/// Where a solve goes.
struct DeviceSolve {
  const DeviceResult& result;
  const DeviceSolverState* state = nullptr;  // of methods with a memory
  const DeviceResult* kept = nullptr;        // becomes the result if that is usable, see cuda::SolveStep
  bool counted = true;                       // whether these weights serve in this step
};

/// How parts find their problems.
struct PartRules {
  bool by_support = false;                ///< whether a group has a problem for each support
  bool names_in_key = false;              ///< whether names of objectives count in the key of random choices
  std::optional<std::uint64_t> key = {};  ///< of the one group, in the place of its name's hash
};

/// Of problems of parts.
struct PartSolve {
  const DeviceSolverState* state = nullptr;  ///< of a method with a memory, for a single problem
  bool scales_to_mean = false;
  const double* importance = nullptr;  ///< see cuda::SolveStep
};

/// MooCollective's counterpart for tensors in device memory: the same stages and wire bytes (less where a bucket is all
/// tail, which has no partial Gramian to send), and a tile that holds the own block too. Everything is enqueued on the
/// current stream of the calling thread; nothing waits for the device, and nothing is allocated once the buffers have
/// the size they need. Hence K, objectives and weights stay on the device, see DeviceStep; a step that has an error
/// makes its reductions' results NaN.
///
/// On a grid whose ranks share objectives a bucket is reduced in two levels, see DeviceInside. Three groups are used
/// then: on one stream, in the same order on all ranks, so that no two of them wait for each other.
///
/// Calls are collective: every rank, same order, one thread at a time.
class DeviceCollective {
 public:
  /// `group`: the caller's, with a backend for `device`; null for a single rank. `method`: its pointers, if any, are
  /// device pointers. `rules`: without those that follow from method and sketch. `grid`: of the group's ranks, with an
  /// exact Gramian only; or none, and then no `groups`. `pieces`: of the ranks with other pieces of the model; null
  /// where there are none, and with a grid.
  DeviceCollective(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device, const Method& method,
                   std::uint64_t seed, const SketchOptions& sketch, StepRules rules, const RankGrid& grid,
                   const GridGroups& groups, c10::intrusive_ptr<c10d::ProcessGroup> pieces);

  /// Of all ranks.
  const DeviceExchange& exchange() const { return all_; }
  /// Of the ranks with other pieces of the model.
  const DeviceExchange& pieces() const { return pieces_; }

  /// The step that the next reductions are of.
  DeviceStep& step() { return step_; }
  const DeviceStep& step() const { return step_; }

  /// Makes room for the K of the first step and for all that may come after it, see DeviceStep::bound_objectives(). To
  /// be called once, before the first step begins.
  /// \throw AgreedError if not every GPU of the group can solve for so many objectives
  void reserve_for(int first_k);
  bool is_reserved() const { return step_.k_bound() > 0; }

  /// Enqueues the mean over the inside group of what a call of a pass brings; without a grid nothing.
  void sum_inside(Operation operation, const at::Tensor& output, const at::Tensor& input, int pass);

  /// The bucket of a call, behind its sum_inside(): on a grid what of it is reduced across. Its tensors are contiguous;
  /// `index`: of the bucket in the step. `input` may be undefined once its rows are added to a tile.
  DeviceBucket bucket(Operation operation, const at::Tensor& output, const at::Tensor& input, std::int64_t index,
                      std::int64_t tile_limit) const;

  /// Enqueues the reductions of MooCollective in a step of one pass. `state`: nullptr for methods without a memory.
  void reduce(const DeviceBucket& bucket, const DeviceResult& result, const DeviceSolverState* state);

  /// Enqueues the same in a step of several passes: accumulate() in each of them, reduce_tile() at the end of the last.
  /// Where the step's rules are one objective a pass, its mean is that of an ordinary reduce-scatter, in the bucket's
  /// dtype; else every rank gets the rows of its shard.
  void accumulate(const DeviceBucket& bucket, int pass, DeviceTile& tile);
  void reduce_tile(const DeviceBucket& bucket, const DeviceTile& tile, const DeviceResult& result,
                   const DeviceSolverState* state);

  /// The same where one problem is solved for all buckets of the step, each of which was in every pass: instead of
  /// reduce_tile() a begin_model(), an add_to_model() for each bucket, one solve_model(), and a combine_tile() for each
  /// bucket. `of_bucket`: whose Gramian is the bucket's, with the weights of the mean.
  void begin_model() { model_is_empty_ = true; }
  void add_to_model(const DeviceBucket& bucket, const DeviceTile& tile, const DeviceSolve& of_bucket);
  void solve_model(const DeviceTile& tile, std::int64_t index, const DeviceSolve& solve);
  void combine_tile(const DeviceBucket& bucket, const DeviceTile& tile) {
    combine_tile(bucket, tile, scratch_.coefficients, nullptr);
  }

  // The same where parts of a bucket have weights of their own, see device_part_steps.cpp: in place of reduce_tile() a
  // part_gramians(), a place_parts(), a solve_parts() once all parts of the problems are placed, and a combine_parts().

  /// Enqueues the Gramians of a bucket's parts.
  /// `call`: a number for it, which ranks with other pieces of the model must have alike.
  void part_gramians(const DeviceBucket& bucket, const DeviceTile& tile, DeviceParts& parts, std::uint64_t call);
  /// Enqueues the search for the problems that they belong to.
  void place_parts(const DeviceParts& parts, const PartRules& rules);
  /// Enqueues the solves of problems. `tile`: any of the step. `is_fresh`: nothing was enqueued since part_gramians()
  /// of it but place_parts().
  void solve_parts(const DeviceProblems& problems, const DeviceTile& tile, const PartSolve& solve, bool is_fresh);
  /// Enqueues the combination of a bucket's parts, by the weights of their problems. `is_fresh`: nothing was enqueued
  /// since part_gramians() of the tile but place_parts() and solve_parts().
  void combine_parts(const DeviceBucket& bucket, const DeviceTile& tile, const DeviceParts& parts, bool is_fresh);

  // The same with sketches, see device_sketch_passes.cpp: what is exchanged and added up in a tile are the columns of
  // the sketches, as if they were a bucket, and each rank keeps its rows.

  /// The columns of a bucket's sketch.
  DeviceBucket sketch_columns(DType dtype, std::int64_t width, std::int64_t index);
  /// Adds the sketches of the rows of a pass to `tile`, which is one of sketch_columns().
  void accumulate_sketch(const at::Tensor& row, std::int64_t index, std::int64_t width, int pass, DeviceTile& tile);

  /// Adds this rank's row of a pass to the sum of its objective.
  void add_own_row(const at::Tensor& row, const ObjectiveName& objective, int pass, DeviceOwnRows& own);
  /// Adds weight * share times the row to one sum. `known`: has the weight; nullptr: it is `weight`. `total`: of the
  /// weights of the objective's rows, which the share is of.
  void add_known_row(const at::Tensor& row, int pass, const DeviceResult* known, double weight, double total,
                     DeviceOwnRows& own);
  /// Makes the row of a step of one pass, which stays in the bucket, its own sum.
  void take_own_row(int pass, DeviceOwnRows& own);

  /// Enqueues the Gramian of a bucket's sums and its solve by `method`.
  void solve_tile(const DeviceBucket& bucket, const DeviceTile& tile, const Method& method, const DeviceSolve& solve);
  const Method& method() const { return method_; }
  /// Makes `used` a copy of `kept`, as long as that is of the objectives of the step.
  void use_kept(const DeviceResult& kept, const DeviceResult& used, bool counted);

  /// Combines the rows of a bucket by these weights, and adds up the ranks. `input`: of a reduce-scatter; else
  /// undefined. `is_fresh`: whether the weights were solved for with these rows.
  void combine_own_rows(const at::Tensor& output, const at::Tensor& input, const DeviceOwnRows& own,
                        const DeviceResult& used, bool is_fresh);
  /// The same for rows that take_own_row() was told of.
  void combine_buckets(const at::Tensor& output, const at::Tensor& input, const DeviceOwnRows& own,
                       const DeviceResult& used);
  /// combine_tile() by weights from elsewhere: of an earlier solve or, `is_fresh`, of the model's, for a bucket that
  /// was not in every pass of the step and has sums in units of its own.
  void combine_tile(const DeviceBucket& bucket, const DeviceTile& tile, const DeviceResult& used, bool is_fresh);

  /// The same with sketches: start_sketch(), and solve_sketched() before the next one, then a weighted sum; or that
  /// with the weights of an earlier solve.

  /// Enqueues the sketch of a bucket, which may change afterwards, into `sketches`. `width`: is_sketch_width().
  void start_sketch(const at::Tensor& bucket, std::int64_t index, std::int64_t width, DeviceSketches& sketches);

  /// Enqueues the exchange of the sketches and the solve, whose weights are those of the next weighted sum. Before the
  /// next step.
  void solve_sketched(const DeviceSketches& sketches, std::int64_t index, const DeviceSolve& solve);

  /// Enqueues bucket = the weighted sum of the ranks' buckets, in place, by one all-reduce, which multiplies by itself
  /// where it can. `kept`: with these weights; nullptr: with those of the last solve.
  void weighted_all_reduce(const at::Tensor& bucket, const KeptWeights* kept);

  /// The same, of which this rank gets a shard. Holds a scaled copy of `input`, which is only read.
  void weighted_reduce_scatter(const at::Tensor& output, const at::Tensor& input, const KeptWeights* kept);

  /// From now on no device memory is let go: a graph has been captured that uses it.
  void keep_memory();

  /// For the largest K there may be.
  DeviceResult make_result() const { return make_result(step_.k_bound()); }
  DeviceResult make_result(int k_bound) const { return {device_, k_bound}; }

  /// Bytes of device memory held between calls, without results and solver states.
  std::size_t scratch_bytes() const;

 private:
  using Bucket = DeviceBucket;

  /// What scratch_buffer_ holds.
  struct Scratch {
    double* factor;          // of this rank in a sum, of any dtype
    double* coefficients;    // of the combination: [W], or [kMaxObjectives] in a step of several passes
    double* packed_gramian;  // of the tails, or of sketches
    double* model;           // the packed sum of the Gramians of a step's buckets
    // Of a step of several passes:
    double* own_coefficients;  // [kMaxObjectives] of what a rank keeps to itself
    double* own_shares;        // [kMaxObjectives]
    double* one;               // 1.0
    int* none;                 // 0
  };

  static Scratch lay_out(MemoryLayout& layout, int world);
  // Of those that reduce the same: all, or the across group of a grid.
  int rank() const { return exchange_.rank(); }
  int world_size() const { return exchange_.size(); }
  /// A tensor that an all-reduce is to replace, or of which each rank is to get a shard.
  DeviceBucket in_place(const at::Tensor& bucket, std::int64_t index, std::int64_t tile_limit) const;
  DeviceBucket apart(const at::Tensor& output, const at::Tensor& input, std::int64_t index,
                     std::int64_t tile_limit) const;
  cudaStream_t stream() const { return current_stream(device_); }
  cuda::DeviceRows load_piece(const Bucket& bucket, std::int64_t begin);
  std::size_t gramian_bytes(const Bucket& bucket) const;
  std::size_t message_bytes(const Bucket& bucket) const;
  cuda::DeviceRows gather_tails(const Bucket& bucket);
  at::Tensor mean_of_ranks(const Bucket& bucket, const double* share);
  void partial_gramian(const Bucket& bucket);
  cuda::DeviceRows exchange_messages(const Bucket& bucket);
  cuda::GramianParts gramian_parts(const Bucket& bucket, const cuda::DeviceRows& tails);
  void all_gather_shards(const Bucket& bucket);
  void launch_solve(cuda::SolveStep step, const Method& method, std::int64_t index, const DeviceSolve& solve,
                    const ObjectiveRegistry& registry);
  void combine(const Bucket& bucket, const cuda::DeviceRows& tails);
  cuda::SolveStep begin_sums(const DeviceTile& tile);
  cuda::SolveStep problem_of_sums(const DeviceTile& tile) const;
  cuda::GramianParts gramian_of_sums(const Bucket& bucket, const DeviceTile& tile);
  cuda::GramianParts of_all_parts(const cuda::GramianParts& parts, const ObjectiveTable& table, int k_bound);
  void gramian(const cuda::DeviceRows& rows, const ObjectiveTable& table, int likely_k, bool fixed_grid, bool add,
               double* packed);
  cuda::ScaleArguments scaling(const at::Tensor& bucket, const KeptWeights* kept) const;
  void combine_tile(const Bucket& bucket, const DeviceTile& tile, const double* coefficients, const double* shares);
  void all_reduce_scaled(const at::Tensor& bucket, cuda::ScaleArguments scaling);
  void reduce_scatter_scaled(const at::Tensor& output, const at::Tensor& input, cuda::ScaleArguments scaling);
  ObjectiveTable table_of_one() const;
  void begin_own_row(cuda::OwnRow& row, int pass);
  void add_row(const at::Tensor& row, const DeviceOwnRows::Place& place);
  void weigh(const int* number, const double* unit, int count, const DeviceResult& used);
  static std::size_t packed_bytes(int k_bound);
  void add_part_gramians(const DeviceParts& parts, const double* own, const std::byte* left_out,
                         const cuda::GramianParts& messages, double* out);
  cuda::GramianParts gather_pieces(std::size_t bytes, std::uint64_t call, const std::function<void(double*)>& write);
  std::int64_t limit_of_others(std::int64_t limit) const;

  const DeviceExchange all_;
  const DeviceExchange exchange_;
  std::optional<DeviceInside> inside_;
  const DeviceExchange pieces_;
  const c10::Device device_;
  const Method method_;
  const std::uint64_t seed_;
  const SketchOptions sketch_;
  DeviceStep step_;
  cuda::DeviceRows last_piece_;
  bool model_is_empty_ = true;

  DeviceBuffer scratch_buffer_;
  Scratch scratch_ = {};
  DeviceBuffer tile_;      // every rank's block of our shard
  DeviceBuffer outgoing_;  // blocks of the shards of others that are not side by side
  DeviceBuffer messages_;  // [W] of partial Gramian and tail, see message_bytes()
  DeviceBuffer scaled_;    // of a reduce-scatter's input
  DeviceBuffer columns_;   // of the sketch of a row of a step of several passes
  DeviceBuffer workspace_;
  DeviceBuffer from_pieces_;  // what ranks with other pieces of the model say, with their Gramians
};

}  // namespace bucket_moo
