// Weights that serve for more than the step they were solved in, on the device.
#ifndef BUCKET_MOO_CUDA_KEPT_WEIGHTS_CUH
#define BUCKET_MOO_CUDA_KEPT_WEIGHTS_CUH

#include <cuda_runtime.h>

#include "reduction_counters.cuh"
#include "scale.cuh"
#include "solve.cuh"

namespace bucket_moo::cuda {

/// to = from, which has no error, by `Threads` threads of one block.
template <int Threads>
__device__ void copy_result(const BucketResult& from, const BucketResult& to) {
  const int k = from.header->k;
  for (int i = static_cast<int>(threadIdx.x); i < k * k; i += Threads) to.gramian[i] = from.gramian[i];
  for (int i = static_cast<int>(threadIdx.x); i < k; i += Threads) to.weights[i] = from.weights[i];
  if (threadIdx.x == 0) {
    *to.header = *from.header;
    *to.solution = *from.solution;
  }
}

/// If the step that should have solved for it had an error, nothing is kept. The host raises that error later.
__device__ inline bool usable(const KeptStep& step) {
  const StepHeader& header = *step.table.header;
  return header.error == StepError::none && step.kept.header->k == header.k;
}

/// The rank's coefficient of the combination; NaN where nothing is usable.
__device__ inline double kept_coefficient(const KeptStep& step) {
  if (!usable(step)) return nan("");
  return step.kept.weights[step.table.objective[step.rank]] * step.table.share[step.rank];
}

/// used = kept, and counts it; by all `Threads` threads of one block.
template <int Threads>
__device__ void use_kept(const KeptStep& step) {
  if (usable(step)) {
    copy_result<Threads>(step.kept, step.used);
    if (threadIdx.x == 0 && step.counters != nullptr) count_reduction(*step.counters, *step.kept.solution);
  } else if (threadIdx.x == 0) {
    *step.used.header = *step.table.header;
    step.used.header->k = 0;
    *step.used.solution = Solution{.status = Status::nonfinite};
  }
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_KEPT_WEIGHTS_CUH
