// Launching a kernel without <<<>>>, so that the same source compiles for the CPU under the emulation of the tests.
#ifndef BUCKET_MOO_CUDA_LAUNCH_CUH
#define BUCKET_MOO_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

#include <cstddef>

namespace bucket_moo::cuda {

/// Enqueues kernel(arguments...) on `blocks` blocks of `threads` threads with `shared` bytes of dynamic shared memory.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, std::size_t shared, cudaStream_t stream,
                   Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Arguments&&>(arguments)...);
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_LAUNCH_CUH
