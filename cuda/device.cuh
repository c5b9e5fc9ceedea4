// The current device of the CUDA runtime that is linked into this library.
#ifndef BUCKET_MOO_CUDA_DEVICE_CUH
#define BUCKET_MOO_CUDA_DEVICE_CUH

#include <cuda_runtime_api.h>

namespace bucket_moo::cuda {

/// Makes `device` current in the calling thread. The runtime is linked statically and keeps a current device of its own
/// beside that of the runtime torch is linked with, so every thread has to say which one it means before it launches.
inline cudaError_t use_device(int device) {
  int current = -1;
  const cudaError_t status = cudaGetDevice(&current);
  if (status != cudaSuccess || current == device) return status;
  return cudaSetDevice(device);
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_DEVICE_CUH
