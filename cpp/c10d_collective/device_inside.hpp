// What ranks that share an objective do on a device before and after the MOO collective across objectives.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "bucket_moo/objective_table.hpp"
#include "c10d_collective/device_exchange.hpp"
#include "c10d_collective/device_memory.hpp"
#include "collective/rank_grid.hpp"
#include "solve.cuh"
#include "torch_types/device.hpp"

namespace bucket_moo {

/// InsideGroup's counterpart for tensors in device memory. The mean is that of the group's reduce-scatter, in the
/// bucket's dtype; tails are gathered, and added up in float32. Enqueued on the current stream of the calling thread,
/// as DeviceCollective's calls are, and collective over the inside group.
///
/// `shares`: [size()], device: what each rank of the group counts for, see DeviceStep::inside_shares().
class DeviceInside {
 public:
  /// `group`: in the order of the grid. `rank`: this one, in the group of the grid.
  DeviceInside(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device, RankGrid grid, int rank);

  int size() const { return exchange_.size(); }

  /// This rank's part of a contiguous bucket.
  at::Tensor part(const at::Tensor& bucket) const { return cut(bucket).part; }
  /// Replaces it by that of the group's mean. The rest of the bucket is lost.
  void mean_in_place(const at::Tensor& bucket, const double* shares);
  /// Replaces the whole bucket by the ranks' parts.
  void gather_parts(const at::Tensor& bucket);

  /// Writes this rank's shard of the group's mean to `output`; `input` holds size() shards and is only read.
  void mean_to_shard(const at::Tensor& output, const at::Tensor& input, const double* shares);

  /// `input` holds a shard of `shard` elements for every rank of the grid, in the order of the ranks, and is only read.
  /// Takes those of this rank's across group, of the inside group's mean, in its order.
  void mean_across(const at::Tensor& input, std::int64_t shard, const double* shares);
  /// Where they are until the next such call; undefined if there was none. `shard`: one of them, for its size and type.
  at::Tensor summed_across(const at::Tensor& shard) const;

  /// The Gramian of a part becomes that of all parts: the same bits on all ranks. `parts`: without a tail, and alike in
  /// an across group; `header`, `k_bound`: see cuda::launch_sum_gramians(). `bytes`: of a packed Gramian, the same on
  /// all ranks.
  cuda::GramianParts sum_over_parts(const cuda::GramianParts& parts, const StepHeader* header, int k_bound,
                                    std::size_t bytes);

  /// What every rank writes, one message after the other. `write`: enqueues this rank's, of `bytes` bytes.
  cuda::GramianParts gather_gramians(std::size_t bytes, const std::function<void(double*)>& write);

  /// From now on no device memory is let go: a graph has been captured that uses it.
  void keep_memory();
  std::size_t scratch_bytes() const;

 private:
  /// A bucket, flat: a shard for every rank, and a tail, which goes to the last one.
  struct Cut {
    at::Tensor shards;
    at::Tensor own;
    at::Tensor tail;
    at::Tensor part;  ///< what this rank reduces: its shard, and the last one the tail too
  };

  int rank() const { return exchange_.rank(); }
  bool is_last() const { return rank() == size() - 1; }
  Cut cut(const at::Tensor& bucket) const;
  void scale(void* values, const void* from, std::int64_t size, const at::Tensor& like, const double* shares) const;
  cudaStream_t stream() const { return current_stream(device_); }

  const DeviceExchange exchange_;
  const c10::Device device_;
  const RankGrid grid_;
  DeviceBuffer tails_;
  DeviceBuffer scaled_;  // of what is only to be read
  DeviceBuffer summed_;
  DeviceBuffer gramians_;
};

}  // namespace bucket_moo
