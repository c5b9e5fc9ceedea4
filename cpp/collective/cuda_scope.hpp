// Launching on torch's current stream without ATen's and c10's CUDA headers, which need a CUDA build of torch.
// Include it only where BUCKET_MOO_CUDA is 1.
#pragma once

#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include "device.cuh"

namespace bucket_moo {

/// Raises RuntimeError, naming `what`, for anything but success.
inline void check_cuda(cudaError_t status, const char* what) {
  TORCH_CHECK(status == cudaSuccess, "bucket_moo_ext: ", what, " failed: ", cudaGetErrorString(status));
}

/// While it lives a CUDA device is current in this thread, for torch and for the runtime linked into this library.
class CudaScope {
 public:
  explicit CudaScope(c10::Device device)
      : guard_(device),
        stream_(c10::impl::VirtualGuardImpl(device.type()).getStream(device)),
        handle_(static_cast<cudaStream_t>(c10::impl::VirtualGuardImpl(device.type()).getStreamNativeHandle(stream_))) {
    check_cuda(cuda::use_device(device.index()), "choosing the device");
  }

  CudaScope(const CudaScope&) = delete;
  CudaScope& operator=(const CudaScope&) = delete;

  /// torch's current stream on the device.
  cudaStream_t stream() const { return handle_; }

 private:
  const c10::DeviceGuard guard_;
  const c10::Stream stream_;
  const cudaStream_t handle_;
};

}  // namespace bucket_moo
