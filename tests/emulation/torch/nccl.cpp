#include "nccl.hpp"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>

#include <memory>
#include <optional>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>
#include <utility>

#include "device.hpp"

namespace bucket_moo::emulation {
namespace {

/// Done once the event is.
class StreamWork final : public c10d::Work {
 public:
  explicit StreamWork(const c10::Stream& stream) : event_(c10::DeviceType::CUDA) {
    event_.record(stream);
    finish();
  }
  bool wait(std::chrono::milliseconds) override {
    event_.block(current_stream());
    return true;
  }
  void synchronize() override { event_.block(current_stream()); }

 private:
  c10::Event event_;
};

/// DDP wants a timer for every device that has events.
class NoTimer final : public c10d::Timer {
 public:
  explicit NoTimer(c10::Device) {}
  void record(Event) override {}
  std::optional<std::int64_t> measureDifference(Event, Event) override { return std::nullopt; }
};

std::vector<at::Tensor> on_host(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> host;
  for (const at::Tensor& tensor : tensors) host.push_back(emulation::on_host(tensor));
  return host;
}

}  // namespace

void install_timer() {
  c10d::TimerRegistry()->Register(c10::DeviceType::CUDA, [](c10::Device device) -> std::unique_ptr<c10d::Timer> {
    return std::make_unique<NoTimer>(device);
  });
}

Nccl::Nccl(c10::intrusive_ptr<c10d::Backend> host)
    : c10d::Backend(host->getRank(), host->getSize()), host_(std::move(host)), stream_(new_stream()) {}

c10::intrusive_ptr<c10d::Work> Nccl::run(const char* name, bool async, const std::vector<at::Tensor>& reads,
                                         const std::vector<at::Tensor>& writes,
                                         std::function<void(c10d::Backend&)> work) {
  const auto enqueue_here = [&] {
    enqueue_on_current(name, &Operations::collectives, reads, writes, [host = host_, work = std::move(work)] {
      const at::NoGradGuard no_grad;
      work(*host);
    });
  };
  if (!async) {
    enqueue_here();
    return {};
  }
  c10::Event ready(c10::DeviceType::CUDA);
  ready.record(current_stream());
  ready.block(stream_);
  for (const std::vector<at::Tensor>* const used : {&reads, &writes}) {
    for (const at::Tensor& tensor : *used) tensor.record_stream(stream_);
  }
  const c10::StreamGuard guard(stream_);
  enqueue_here();
  return c10::make_intrusive<StreamWork>(stream_);
}

c10::intrusive_ptr<c10d::Work> Nccl::allreduce(std::vector<at::Tensor>& tensors,
                                               const c10d::AllreduceOptions& options) {
  std::vector<at::Tensor> reads = tensors;
  at::Tensor factor;
  if (options.reduceOp == c10d::ReduceOp::PREMUL_SUM) {
    const auto* const supplement = static_cast<c10d::NCCLPreMulSumSupplement*>(options.reduceOp.supplement_.get());
    TORCH_CHECK(supplement->tensor_factor.defined(), "the emulation multiplies by tensors only");
    reads.push_back(supplement->tensor_factor);
    factor = emulation::on_host(supplement->tensor_factor);
  }
  const auto operation = factor.defined() ? c10d::ReduceOp(c10d::ReduceOp::SUM) : options.reduceOp;
  return run("all-reduce", options.asyncOp, reads, tensors,
             [tensors = on_host(tensors), factor, operation](c10d::Backend& host) mutable {
               if (factor.defined()) tensors[0].mul_(factor);
               c10d::AllreduceOptions on_host;
               on_host.reduceOp = operation;
               host.allreduce(tensors, on_host)->wait();
             });
}

c10::intrusive_ptr<c10d::Work> Nccl::broadcast(std::vector<at::Tensor>& tensors,
                                               const c10d::BroadcastOptions& options) {
  return run(
      "broadcast", options.asyncOp, tensors, tensors,
      [tensors = on_host(tensors), options](c10d::Backend& host) mutable { host.broadcast(tensors, options)->wait(); });
}

c10::intrusive_ptr<c10d::Work> Nccl::allgather(std::vector<std::vector<at::Tensor>>& outputs,
                                               std::vector<at::Tensor>& inputs, const c10d::AllgatherOptions& options) {
  return run("all-gather", options.asyncOp, inputs, outputs[0],
             [outputs = std::vector<std::vector<at::Tensor>>{on_host(outputs[0])},
              inputs = on_host(inputs)](c10d::Backend& host) mutable { host.allgather(outputs, inputs)->wait(); });
}

c10::intrusive_ptr<c10d::Work> Nccl::_allgather_base(at::Tensor& output, at::Tensor& input,
                                                     const c10d::AllgatherOptions& options) {
  return run("all-gather", options.asyncOp, {input}, {output},
             [output = emulation::on_host(output), input = emulation::on_host(input)](c10d::Backend& host) mutable {
               host._allgather_base(output, input)->wait();
             });
}

c10::intrusive_ptr<c10d::Work> Nccl::_reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                                          const c10d::ReduceScatterOptions& options) {
  return run("reduce-scatter", options.asyncOp, {input}, {output},
             [output = emulation::on_host(output), input = emulation::on_host(input),
              operation = options.reduceOp](c10d::Backend& host) mutable {
               c10d::ReduceScatterOptions on_host;
               on_host.reduceOp = operation;
               host._reduce_scatter_base(output, input, on_host)->wait();
             });
}

c10::intrusive_ptr<c10d::Work> Nccl::alltoall_base(at::Tensor& output, at::Tensor& input,
                                                   std::vector<std::int64_t>& output_sizes,
                                                   std::vector<std::int64_t>& input_sizes,
                                                   const c10d::AllToAllOptions& options) {
  return run(
      "all-to-all", options.asyncOp, {input}, {output},
      [output = emulation::on_host(output), input = emulation::on_host(input), output_sizes, input_sizes](
          c10d::Backend& host) mutable { host.alltoall_base(output, input, output_sizes, input_sizes)->wait(); });
}

}  // namespace bucket_moo::emulation
