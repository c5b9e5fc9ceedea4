// The MOO all-reduce and reduce-scatter on a device, from bucket to bucket without the host.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

#include "bucket_moo/method.hpp"
#include "collective/device_exchange.hpp"
#include "collective/device_memory.hpp"
#include "collective/device_results.hpp"
#include "collective/objectives.hpp"
#include "collective/sketch_options.hpp"
#include "kernels/rows.hpp"
#include "rows.cuh"
#include "scale.cuh"

namespace bucket_moo {

/// The sketches of a bucket's objectives: this rank's share, and everybody's once they are added up.
struct DeviceSketches {
  DeviceBuffer memory;
  cuda::DeviceRows rows = {};

  at::Tensor tensor() const;
};

/// MooCollective's counterpart for tensors in device memory: the same stages and wire bytes, and a tile that holds the
/// own block too. Everything is enqueued on the current stream of the calling thread; nothing waits for the device, and
/// nothing is allocated once the buffers have the size they need. Hence objectives and weights stay on the device: it
/// builds the step's table, and its kernels read K from there.
///
/// The first step is met on the host, which waits for the device once. After it, what is wrong with a step (other
/// calls, too many objectives) turns the step's results into NaN and is raised by a later call.
///
/// Calls are collective: every rank, same order, one thread at a time.
class DeviceCollective {
 public:
  /// `group`: the caller's, with a backend for `device`; null for a single rank. `method`: its pointers, if any, are
  /// device pointers. `option_count`: the K that its options are for, 0: any.
  DeviceCollective(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device, const Method& method,
                   int option_count, std::uint64_t seed, const SketchOptions& sketch);

  int rank() const { return exchange_.rank(); }
  int world_size() const { return exchange_.size(); }
  const DeviceExchange& exchange() const { return exchange_; }

  /// The objectives of the first step, before it begins. Raises ValueError on every rank as read_objectives() does.
  /// Waits for the device.
  Objectives meet(const StepRecord& own) const;

  /// To be called once, before the first step, with its K: the kernels are made for it, and it settles how large K may
  /// become: 64, but 16 where it is at most 8; with sketches, whose exchange takes room for so many, the next power of
  /// two, and 4 at least.
  void settle(int first_k);
  bool has_settled() const { return k_bound_ > 0; }

  /// Enqueues the exchange of records that starts a step. The device counts the steps, on from set_step(); the step of
  /// `own` is not used.
  void begin_step(const StepRecord& own);
  void set_step(std::int64_t step);

  /// Enqueues the reductions of MooCollective for contiguous tensors. `index`: of the bucket in the step. `state`:
  /// nullptr for methods without a memory.
  void all_reduce(const at::Tensor& bucket, std::int64_t index, std::int64_t tile_limit, const DeviceResult& result,
                  const DeviceSolverState* state);
  void reduce_scatter(const at::Tensor& output, const at::Tensor& input, std::int64_t index, std::int64_t tile_limit,
                      const DeviceResult& result, const DeviceSolverState* state);

  /// The same with sketches: start_sketch(), and solve_sketched() before the next one, then a weighted sum; or that
  /// with the weights of an earlier solve.

  /// Enqueues the sketch of a bucket, which may change afterwards, into `sketches`. `width`: is_sketch_width().
  void start_sketch(const at::Tensor& bucket, std::int64_t index, std::int64_t width, DeviceSketches& sketches);

  /// Enqueues the exchange of the sketches and the solve, whose weights are those of the next weighted sum. Before the
  /// next step. `counted`: whether these weights serve in this step.
  void solve_sketched(const DeviceSketches& sketches, std::int64_t index, const DeviceResult& result,
                      const DeviceSolverState* state, bool counted);

  /// Enqueues kept = solved, if that is usable, see cuda/kept_weights.cuh.
  void keep(const DeviceResult& solved, const DeviceResult& kept) const;

  /// Enqueues used = kept, whose weights are those of the next weighted sum. The objectives must be the same in every
  /// step, see SketchOptions::keeps_weights().
  void use_kept(const DeviceResult& kept, const DeviceResult& used) const;

  /// Steps may have other objectives than those before.
  void forget_objectives();

  /// Enqueues bucket = the weighted sum of the ranks' buckets, in place, by one all-reduce, which multiplies by itself
  /// where it can.
  void weighted_all_reduce(const at::Tensor& bucket);

  /// The same, of which this rank gets a shard. Holds a scaled copy of `input`, which is only read.
  void weighted_reduce_scatter(const at::Tensor& output, const at::Tensor& input);

  /// From now on no device memory is let go: a graph has been captured that uses it.
  void keep_memory();

  /// For the largest K there may be.
  DeviceResult make_result() const { return {device_, k_bound_}; }

  /// Raises ValueError if a step had an error and the host has come to know of it. Does not wait.
  void check_past_steps() const;

  /// The same for the header of a result.
  void check_step_of(const StepHeader& header) const;

  // What follows waits for the current stream.

  cuda::DeviceCounters counters() const;
  /// Names of the newest step's objectives, of which there are k.
  std::vector<std::string> objective_names(int k) const;
  /// Names that methods with a memory know, by number. At most kMaxRememberedNames.
  std::vector<std::string> remembered_names() const;
  void set_remembered_names(const std::vector<std::string>& names);

  /// Bytes of device memory held between calls, without results and solver states.
  std::size_t scratch_bytes() const;

 private:
  /// A bucket as one call sees it.
  struct Bucket {
    at::Tensor shards;     // bytes: world_size() shards, one after another
    std::byte* tail;       // tail_size elements, in and out
    std::byte* shard_out;  // where this rank's shard of the result goes
    std::int64_t shard_size;
    std::int64_t tail_size;
    DType dtype;
    std::int64_t piece;  // elements of the shard in the tile at a time
    std::int64_t index;
  };

  /// Where the things of a step lie in step_memory_.
  struct StepMemory;

  cudaStream_t stream() const { return current_stream(device_); }
  StepMemory step_memory() const;
  void reduce(const Bucket& bucket, const DeviceResult& result, const DeviceSolverState* state);
  cuda::DeviceRows load_piece(const Bucket& bucket, std::int64_t begin);
  void partial_gramian(const Bucket& bucket);
  cuda::DeviceRows exchange_partials(const Bucket& bucket, const DeviceResult& result);
  void solve(std::int64_t index, const DeviceResult& result, const DeviceSolverState* state, bool counted);
  void combine_shard(const Bucket& bucket);
  void gramian(const cuda::DeviceRows& rows, bool fixed_grid, bool add, double* packed);
  cuda::ScaleArguments scaling(const at::Tensor& bucket) const;
  std::size_t packed_bytes() const;
  std::int64_t of_others(std::int64_t limit) const;

  const DeviceExchange exchange_;
  const c10::Device device_;
  const Method method_;
  const int option_count_;
  const std::uint64_t seed_;
  const SketchOptions sketch_;
  int likely_k_ = 0;  // that of the first step
  int k_bound_ = 0;
  cuda::DeviceRows last_piece_;

  DeviceBuffer step_memory_;
  DeviceBuffer names_;     // the registry
  DeviceBuffer tile_;      // every rank's block of our shard
  DeviceBuffer outgoing_;  // blocks of the shards of others that are not side by side
  DeviceBuffer messages_;  // [W] of partial Gramian and tail
  DeviceBuffer scaled_;    // of a reduce-scatter's input
  DeviceBuffer workspace_;
  at::Tensor first_failure_;  // StepHeader in host memory that the device writes, pinned
};

}  // namespace bucket_moo
