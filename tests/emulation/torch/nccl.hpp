// A stand-in for NCCL: collectives on streams of the emulated device.
#ifndef BUCKET_MOO_EMULATION_TORCH_NCCL_HPP
#define BUCKET_MOO_EMULATION_TORCH_NCCL_HPP

#include <functional>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

namespace bucket_moo::emulation {

/// What ProcessGroupNCCL is to its callers: with asyncOp == false a collective is enqueued on the current stream and no
/// Work is returned; else it runs on a stream of the group's, and wait() makes the current stream wait. The ranks meet
/// in a backend for the CPU. They must make the same calls in the same order, replays of graphs included.
class Nccl final : public c10d::Backend {
 public:
  explicit Nccl(c10::intrusive_ptr<c10d::Backend> host);

  const std::string getBackendName() const override { return "nccl"; }

  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
                                           const c10d::AllreduceOptions& options) override;
  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<at::Tensor>& tensors,
                                           const c10d::BroadcastOptions& options) override;
  c10::intrusive_ptr<c10d::Work> allgather(std::vector<std::vector<at::Tensor>>& outputs,
                                           std::vector<at::Tensor>& inputs,
                                           const c10d::AllgatherOptions& options) override;
  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& output, at::Tensor& input,
                                                 const c10d::AllgatherOptions& options) override;
  c10::intrusive_ptr<c10d::Work> _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                                      const c10d::ReduceScatterOptions& options) override;
  c10::intrusive_ptr<c10d::Work> alltoall_base(at::Tensor& output, at::Tensor& input,
                                               std::vector<std::int64_t>& output_sizes,
                                               std::vector<std::int64_t>& input_sizes,
                                               const c10d::AllToAllOptions& options) override;

 private:
  c10::intrusive_ptr<c10d::Work> run(const char* name, bool async, const std::vector<at::Tensor>& reads,
                                     const std::vector<at::Tensor>& writes, std::function<void(c10d::Backend&)> work);

  const c10::intrusive_ptr<c10d::Backend> host_;
  const c10::Stream stream_;
};

}  // namespace bucket_moo::emulation

#endif  // BUCKET_MOO_EMULATION_TORCH_NCCL_HPP
