// The exchanges of the device path over a c10d process group.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <cstddef>
#include <span>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace bucket_moo {

/// Collectives on the current stream of the calling thread: with NCCL they are enqueued and nothing waits for them;
/// with a backend that goes through the host (Gloo) the call returns when they are done.
class DeviceExchange {
 public:
  /// `group`: the caller's, whose ranks all make the same calls in the same order; null for a single rank.
  DeviceExchange(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device);

  int rank() const { return rank_; }
  int size() const { return size_; }

  /// Rank p receives block p of every rank's `input`, in rank order. Both contiguous, of size() equal blocks of bytes.
  void all_to_all(at::Tensor output, at::Tensor input) const;

  /// Fills block r of `blocks` (contiguous bytes, size() equal blocks) with rank r's, of which the own one is there.
  void all_gather(at::Tensor blocks) const;

  /// The same, where the own block is `own`, apart from `blocks`.
  void all_gather(at::Tensor blocks, at::Tensor own) const;

  /// Whether all_reduce() takes a factor for such tensors. The 16-bit types would round it.
  bool multiplies(at::ScalarType type) const;

  /// tensor = the sum of factor * tensor over the ranks, the same bits on every rank. `factor`: [1], this rank's, on
  /// the device, of the tensor's dtype, and only where multiplies(); undefined: 1.
  void all_reduce(at::Tensor tensor, const at::Tensor& factor = {}) const;

  /// output = block rank() of the sum of `input` over the ranks, which holds size() equal blocks. Both contiguous.
  void reduce_scatter(at::Tensor output, at::Tensor input) const;

  /// Fills a contiguous `tensor` with that of rank `root`.
  void broadcast(at::Tensor tensor, int root) const;

  /// The same as all_gather() for contiguous host memory of any shape. Waits for the device.
  void all_gather_host(const at::Tensor& blocks) const;
  void all_gather_host(std::span<std::byte> blocks) const;

 private:
  const c10::intrusive_ptr<c10d::ProcessGroup> group_;
  const c10::Device device_;
  const int rank_;
  const int size_;
  const bool is_nccl_;
};

}  // namespace bucket_moo
