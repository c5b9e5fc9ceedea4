// Batches of problems, from the forms in which callers hold them to those of the kernels and back. Torch-free; none of
// these functions throws, synchronises or allocates, and all can be captured in a graph.
#ifndef BUCKET_MOO_CUDA_BATCHES_CUH
#define BUCKET_MOO_CUDA_BATCHES_CUH

#include <cuda_runtime_api.h>

#include <bucket_moo/solution.hpp>
#include <cstdint>

#include "numbers.cuh"
#include "shares.cuh"

namespace bucket_moo::cuda {

/// Enqueues to[i] = from[i], `count` >= 0 of them.
/// \return cudaErrorInvalidValue for arguments out of range, else what the launch says
cudaError_t launch_convert(Numbers from, std::int64_t count, Numbers to, cudaStream_t stream);

/// Enqueues full[b] = the symmetric matrix of a packed lower triangle, for every problem.
/// \param packed  [batch, k (k + 1) / 2] float64, device
/// \param full    [batch, k, k], device, out
/// \return as launch_convert()
cudaError_t launch_unpack_gramians(const double* packed, int batch, int k, Numbers full, cudaStream_t stream);

/// Enqueues sum[b] = parts[b, 0] + parts[b, 1] + ..., in this order, for every problem.
/// \param parts    [batch, count, size], device; count >= 1
/// \param sum      [batch, size] float64, device, out
/// \param rounded  [batch, size], device, out: the same
/// \return as launch_convert()
cudaError_t launch_add_parts(Numbers parts, int batch, int count, int size, double* sum, Numbers rounded,
                             cudaStream_t stream);

/// What is wanted of solved problems; device, out.
struct BatchResults {
  Numbers coefficients;                ///< [batch, R]: of each row in the combination
  Numbers weights;                     ///< [batch, K]
  std::int32_t* status = nullptr;      ///< [batch]
  std::int32_t* iterations = nullptr;  ///< [batch]
  Numbers residual;                    ///< [batch]
};

/// Enqueues coefficients[b, r] = weights[b, objective of r] * shares[b, r], and the rest of the results as it is.
/// \param weights    [batch, K] float64, device
/// \param solutions  [batch], device
/// \param shares     [batch, R], device
/// \return as launch_convert()
cudaError_t launch_hand_out(const RowObjectives& rows, const double* weights, const Solution* solutions, Numbers shares,
                            const BatchResults& out, cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_BATCHES_CUH
