#include "c10d_collective/device_exchange.hpp"

#include <ATen/Functions.h>

#include <cstdint>
#include <utility>
#include <vector>

// The names that torch 2.11 has too; 2.13 and 2.14 call them deprecated.
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace bucket_moo {
namespace {

/// Null from a backend that has enqueued the work on the current stream.
void finish(const c10::intrusive_ptr<c10d::Work>& work) {
  if (work) {
    work->wait();
  }
}

bool is_nccl(const c10::intrusive_ptr<c10d::ProcessGroup>& group, c10::Device device) {
  return group && device.is_cuda() && group->getBackend(device.type())->getBackendName() == "nccl";
}

}  // namespace

DeviceExchange::DeviceExchange(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device)
    : group_(std::move(group)),
      device_(device),
      rank_(group_ ? group_->getRank() : 0),
      size_(group_ ? group_->getSize() : 1),
      is_nccl_(is_nccl(group_, device)) {}

void DeviceExchange::all_to_all(at::Tensor output, at::Tensor input) const {
  if (output.numel() == 0) {
    return;
  }
  if (!group_) {
    output.copy_(input);
    return;
  }
  c10d::AllToAllOptions options;
  options.asyncOp = false;
  std::vector<std::int64_t> equal;
  finish(group_->alltoall_base(output, input, equal, equal, options));
}

void DeviceExchange::all_gather(at::Tensor blocks) const {
  const std::int64_t block = blocks.numel() / size_;
  all_gather(blocks, blocks.narrow(0, rank_ * block, block));
}

void DeviceExchange::all_gather(at::Tensor blocks, at::Tensor own) const {
  if (!group_ || blocks.numel() == 0) {
    return;
  }
  c10d::AllgatherOptions options;
  options.asyncOp = false;
  finish(group_->_allgather_base(blocks, own, options));
}

bool DeviceExchange::multiplies(at::ScalarType type) const {
  return is_nccl_ && (type == at::kFloat || type == at::kDouble);
}

void DeviceExchange::all_reduce(at::Tensor tensor, const at::Tensor& factor) const {
  if (!group_ || tensor.numel() == 0) {
    return;
  }
  c10d::AllreduceOptions options;
  options.asyncOp = false;
  if (factor.defined()) {
    options.reduceOp.op_ = c10d::ReduceOp::PREMUL_SUM;
    options.reduceOp.supplement_ = c10::make_intrusive<c10d::NCCLPreMulSumSupplement>(factor);
  }
  std::vector<at::Tensor> tensors{std::move(tensor)};
  finish(group_->allreduce(tensors, options));
}

void DeviceExchange::reduce_scatter(at::Tensor output, at::Tensor input) const {
  if (output.numel() == 0) {
    return;
  }
  if (!group_) {
    output.copy_(input);
    return;
  }
  c10d::ReduceScatterOptions options;
  options.asyncOp = false;
  finish(group_->_reduce_scatter_base(output, input, options));
}

void DeviceExchange::broadcast(at::Tensor tensor, int root) const {
  if (!group_ || tensor.numel() == 0) {
    return;
  }
  c10d::BroadcastOptions options;
  options.rootRank = root;
  options.asyncOp = false;
  std::vector<at::Tensor> tensors{std::move(tensor)};
  finish(group_->broadcast(tensors, options));
}

void DeviceExchange::all_gather_host(const at::Tensor& blocks) const {
  if (!group_ || blocks.numel() == 0) {
    return;
  }
  const at::Tensor host = blocks.view({-1}).view(at::kByte);
  const at::Tensor copy = at::empty_like(host, host.options().device(device_));
  copy.copy_(host);
  all_gather(copy);
  host.copy_(copy);
}

void DeviceExchange::all_gather_host(std::span<std::byte> blocks) const {
  all_gather_host(
      at::from_blob(blocks.data(), {static_cast<std::int64_t>(blocks.size())}, at::TensorOptions().dtype(at::kByte)));
}

}  // namespace bucket_moo
