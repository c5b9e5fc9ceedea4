// Small pieces of host memory into device memory. Torch-free; does not throw, synchronise or allocate.
#ifndef BUCKET_MOO_CUDA_COPY_FROM_HOST_CUH
#define BUCKET_MOO_CUDA_COPY_FROM_HOST_CUH

#include <cuda_runtime_api.h>

#include <cstddef>

namespace bucket_moo::cuda {

/// Enqueues device[0, bytes) = values[0, bytes). The values travel as arguments of the launch, not by a copy from host
/// memory: `values` is free on return, and a captured graph has them in itself.
/// \param values  host memory
/// \param bytes   a few kilobytes; one launch for every 2048. 0: nothing is launched
/// \param device  device, out
/// \return cudaErrorInvalidValue for null pointers, else what the launches say. Can be captured in a graph.
cudaError_t launch_copy_from_host(const void* values, std::size_t bytes, void* device, cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_COPY_FROM_HOST_CUH
