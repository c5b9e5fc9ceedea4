// Memory and streams of a device, through c10's device-generic interfaces: CUDA's own need CUDA headers that a CPU-only
// torch does not have.
#pragma once

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "device.cuh"

namespace bucket_moo {

/// Raises RuntimeError for what a CUDA call says.
inline void check_cuda(cudaError_t status, const char* what) {
  TORCH_CHECK(status == cudaSuccess, "bucket_moo_ext: ", what, " failed: ", cudaGetErrorString(status));
}

/// Whether the kernels of cuda/ reduce this device's tensors: CUDA's; in the emulation that tests use, the CPU's, which
/// has neither streams nor a current device.
inline bool is_kernel_device(c10::Device device) {
  return BUCKET_MOO_EMULATED_CUDA ? device.is_cpu() : device.is_cuda();
}

/// The current stream of the calling thread, as kernels are launched on it.
inline cudaStream_t current_stream(c10::Device device) {
  if (!device.is_cuda()) {
    return nullptr;
  }
  const c10::impl::VirtualGuardImpl impl(device.type());
  return static_cast<cudaStream_t>(impl.getStreamNativeHandle(impl.getStream(device)));
}

/// Whether the stream is being captured into a graph.
inline bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &status), "asking a stream for its capture");
  return status != cudaStreamCaptureStatusNone;
}

/// Makes a device current for torch and for our own CUDA runtime, for its scope.
class KernelDeviceGuard {
 public:
  explicit KernelDeviceGuard(c10::Device device) : guard_(device) {
    if (device.is_cuda()) {
      check_cuda(cuda::use_device(device.index()), "choosing the device");
    }
  }

 private:
  c10::DeviceGuard guard_;
};

/// A stream beside the caller's.
class SideStream {
 public:
  explicit SideStream(c10::Device device) : device_(device), stream_(make(device)) {
    if (device.is_cuda()) {
      ready_.emplace(device.type());
    }
  }

  c10::Stream stream() const { return stream_; }

  /// What is enqueued from now on waits for what the calling thread's current stream holds.
  void follow_current() {
    if (ready_) {
      ready_->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
      ready_->block(stream_);
    }
  }

 private:
  /// Of high priority, so that our small kernels are not queued behind the large ones of the backward pass.
  static c10::Stream make(c10::Device device) {
    const c10::impl::VirtualGuardImpl impl(device.type());
    return device.is_cuda() ? impl.getStreamFromGlobalPool(device, /*isHighPriority=*/true) : impl.getStream(device);
  }

  c10::Device device_;
  c10::Stream stream_;
  std::optional<c10::Event> ready_;
};

/// Bytes on a device that grow and are kept; once keep_all() was called, outgrown memory is kept too, because a
/// captured graph goes on using it. Torch's allocator aligns them to 64 bytes or more, and hands memory that
/// is let go only to work on the same stream, hence after what is still enqueued on it.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(c10::Device device) : device_(device) {}

  /// At least `bytes` bytes; what was in them before is lost when the memory has to grow, and is zero then.
  std::byte* reserve(std::size_t bytes) {
    if (bytes > capacity()) {
      release();  // before the new block is taken: the peak is the larger of the two, not their sum
      memory_ = at::zeros({static_cast<std::int64_t>(bytes)}, at::TensorOptions().dtype(at::kByte).device(device_));
    }
    return data();
  }

  void release() {
    if (keep_all_ && memory_.defined()) {
      outgrown_.push_back(memory_);
    }
    memory_.reset();
  }

  void keep_all() { keep_all_ = true; }

  std::byte* data() const { return memory_.defined() ? static_cast<std::byte*>(memory_.mutable_data_ptr()) : nullptr; }
  at::Tensor tensor(std::size_t bytes) const { return memory_.narrow(0, 0, static_cast<std::int64_t>(bytes)); }
  /// `bytes` bytes from `part` on, which lies inside.
  at::Tensor tensor_at(const void* part, std::size_t bytes) const {
    return memory_.narrow(0, static_cast<const std::byte*>(part) - data(), static_cast<std::int64_t>(bytes));
  }
  std::size_t capacity() const { return memory_.defined() ? memory_.nbytes() : 0; }

 private:
  c10::Device device_;
  at::Tensor memory_;
  bool keep_all_ = false;
  std::vector<at::Tensor> outgrown_;
};

}  // namespace bucket_moo
