// A tensor's device as kernels are launched on it, through c10's device-generic interfaces: CUDA's own need CUDA
// headers that a CPU-only torch does not have.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include "device.cuh"

namespace bucket_moo {

/// Raises RuntimeError for what a CUDA call says.
inline void check_cuda(cudaError_t status, const char* what) {
  TORCH_CHECK(status == cudaSuccess, "bucket_moo_ext: ", what, " failed: ", cudaGetErrorString(status));
}

/// Whether the kernels of cuda/ reduce this device's tensors: CUDA's; in the emulation that tests use, the CPU's too,
/// which has neither streams nor a current device.
inline bool is_kernel_device(c10::Device device) {
  return device.is_cuda() || (BUCKET_MOO_EMULATED_CUDA && device.is_cpu());
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

/// While another thread captures a graph, this one may allocate memory of the host and ask for events, for its scope:
/// else that is an error, and spoils the capture.
class BesideCaptures {
 public:
  BesideCaptures() { check_cuda(cudaThreadExchangeStreamCaptureMode(&mode_), "leaving captures alone"); }
  ~BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCaptures(const BesideCaptures&) = delete;
  BesideCaptures& operator=(const BesideCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;  // afterwards the thread's own
};

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

}  // namespace bucket_moo
