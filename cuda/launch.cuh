// How kernels are launched and how they find their shared memory. Nothing here is syntax that only a CUDA compiler
// knows, so that the kernels can be tested on machines without one.
#ifndef BUCKET_MOO_CUDA_LAUNCH_CUH
#define BUCKET_MOO_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "device_facts.cuh"

namespace bucket_moo::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

/// The block's shared memory, of the size given to launch(); 16-byte aligned, not initialised. Kernels have no other.
template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

/// What a launch takes beside its arguments.
struct LaunchShape {
  unsigned blocks;
  unsigned threads;        ///< of a block
  std::size_t shared = 0;  ///< bytes of shared memory of a block
};

/// Lets blocks of `kernel` have that much shared memory; to be called before a launch or a question about occupancy.
template <class... Parameters>
cudaError_t allow_shared(void (*kernel)(Parameters...), std::size_t bytes) {
  constexpr std::size_t kWithoutOptIn = 48 * 1024;
  if (bytes <= kWithoutOptIn) return cudaSuccess;
  int device = 0;
  const cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  const int most = static_cast<int>(bytes);
  // Never lowered: a launch with more may follow.
  return DeviceFacts::instance().raise({device, reinterpret_cast<const void*>(kernel)}, most, [&] {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  });
}

/// Multiprocessors of the current device.
inline cudaError_t multiprocessor_count(int* count) {
  int device = 0;
  const cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  return DeviceFacts::instance().find({device}, count, [device](int* answer) {
    return cudaDeviceGetAttribute(answer, cudaDevAttrMultiProcessorCount, device);
  });
}

/// Blocks of a kernel that a multiprocessor of the current device holds at a time.
template <class... Parameters>
cudaError_t resident_blocks(void (*kernel)(Parameters...), const LaunchShape& shape, int* blocks) {
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = allow_shared(kernel, shape.shared);
  if (status != cudaSuccess) return status;
  const auto threads = static_cast<int>(shape.threads);
  return DeviceFacts::instance().find(
      {device, reinterpret_cast<const void*>(kernel), threads, shape.shared}, blocks, [&](int* answer) {
        return cudaOccupancyMaxActiveBlocksPerMultiprocessor(answer, kernel, threads, shape.shared);
      });
}

/// Sets how many blocks share `pieces` > 0 pieces of work: as many as the current device can run at once.
template <class... Parameters>
cudaError_t fill_device(void (*kernel)(Parameters...), std::int64_t pieces, LaunchShape* shape) {
  int count = 0;
  int each = 0;
  cudaError_t status = multiprocessor_count(&count);
  if (status == cudaSuccess) status = resident_blocks(kernel, *shape, &each);
  if (status != cudaSuccess) return status;
  const std::int64_t most = static_cast<std::int64_t>(count) * (each > 0 ? each : 1);
  shape->blocks = static_cast<unsigned>(pieces < most ? pieces : most);
  return cudaSuccess;
}

/// Enqueues a kernel.
/// \return what the launch says, or cudaErrorInvalidValue for a size that the device does not have
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), LaunchShape shape, cudaStream_t stream, Arguments&&... arguments) {
  const cudaError_t status = allow_shared(kernel, shape.shared);
  if (status != cudaSuccess) return status;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.blocks);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Arguments&&>(arguments)...);
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_LAUNCH_CUH
