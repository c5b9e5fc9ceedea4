// From the forms in which the kernels leave Gramians and solutions to plain arrays. Torch-free; none of these functions
// throws, synchronises or allocates.
#ifndef BUCKET_MOO_CUDA_UNPACK_RESULTS_CUH
#define BUCKET_MOO_CUDA_UNPACK_RESULTS_CUH

#include <cuda_runtime_api.h>

#include <bucket_moo/solution.hpp>
#include <cstdint>

namespace bucket_moo::cuda {

/// Enqueues the symmetric matrix of a packed lower triangle.
/// \param packed  [k (k + 1) / 2] float64, device, row by row
/// \param k       1 <= k <= kMaxObjectives
/// \param full    [k, k] float64, device, out
/// \return cudaErrorInvalidValue for arguments out of range, else what the launch says. Can be captured in a graph.
cudaError_t launch_unpack_gramian(const double* packed, int k, double* full, cudaStream_t stream);

/// Enqueues the fields of `batch` solutions.
/// \param solutions  [batch], device
/// \param status, iterations  [batch], device, out
/// \param residual   [batch] float64, device, out
/// \return as launch_unpack_gramian()
cudaError_t launch_unpack_solutions(const Solution* solutions, int batch, std::int64_t* status,
                                    std::int64_t* iterations, double* residual, cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_UNPACK_RESULTS_CUH
