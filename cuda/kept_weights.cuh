// Weights that serve for more than the step they were solved in, on the device. Torch-free; none of these functions
// throws, synchronises or allocates, and all can be captured in a graph.
#ifndef BUCKET_MOO_CUDA_KEPT_WEIGHTS_CUH
#define BUCKET_MOO_CUDA_KEPT_WEIGHTS_CUH

#include <cuda_runtime_api.h>

#include "solve.cuh"

namespace bucket_moo::cuda {

/// Enqueues kept = solved. What is kept stays as it is if the step had an error. It also stays if the gradients had a
/// NaN or Inf, unless nothing is kept yet.
/// \param solved, kept  all pointers on the device; kept.header all zero: nothing yet
cudaError_t launch_keep_weights(const BucketResult& solved, const BucketResult& kept, cudaStream_t stream);

/// A bucket of a step that takes the weights that are kept for it.
struct KeptStep {
  ObjectiveTable table = {};           ///< of the step, device
  int world = 0;                       ///< W, ranks in the table
  BucketResult kept = {};              ///< device
  BucketResult used = {};              ///< device, out: as kept, the step of its header included
  double* coefficients = nullptr;      ///< as in SolveStep
  DeviceCounters* counters = nullptr;  ///< as in SolveStep
};

/// Enqueues used = kept and the coefficients of the combination. After an error of the step the coefficients are NaN,
/// and used.header holds the error.
cudaError_t launch_use_kept(const KeptStep& step, cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_KEPT_WEIGHTS_CUH
