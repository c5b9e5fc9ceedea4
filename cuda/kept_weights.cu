#include <cuda_runtime.h>

#include "kept_weights.cuh"
#include "launch.cuh"
#include "reduction_counters.cuh"

namespace bucket_moo::cuda {
namespace {

constexpr int kThreads = 128;

/// By one block. `from` has no error.
__device__ void copy(const BucketResult& from, const BucketResult& to) {
  const int k = from.header->k;
  for (int i = static_cast<int>(threadIdx.x); i < k * k; i += kThreads) to.gramian[i] = from.gramian[i];
  for (int i = static_cast<int>(threadIdx.x); i < k; i += kThreads) to.weights[i] = from.weights[i];
  if (threadIdx.x == 0) {
    *to.header = *from.header;
    *to.solution = *from.solution;
  }
}

__global__ void __launch_bounds__(kThreads) keep_weights(const BucketResult solved, const BucketResult kept) {
  const bool is_first = kept.header->k == 0;
  const bool usable = solved.header->error == StepError::none;
  const bool finite = solved.solution->status != Status::nonfinite;
  __syncthreads();  // before the header changes
  if (usable && (finite || is_first)) copy(solved, kept);
}

__global__ void __launch_bounds__(kThreads) use_kept(const KeptStep step) {
  const StepHeader& header = *step.table.header;
  // If the step that should have solved for it had an error, nothing is kept. The host raises that error later.
  const bool usable = header.error == StepError::none && step.kept.header->k == header.k;
  for (int r = static_cast<int>(threadIdx.x); r < step.world; r += kThreads) {
    step.coefficients[r] = usable ? step.kept.weights[step.table.objective[r]] * step.table.share[r] : nan("");
  }
  if (usable) {
    copy(step.kept, step.used);
    if (threadIdx.x == 0) count_reduction(*step.counters, *step.kept.solution);
  } else if (threadIdx.x == 0) {
    *step.used.header = header;
    step.used.header->k = 0;
    *step.used.solution = Solution{.status = Status::nonfinite};
  }
}

}  // namespace

cudaError_t launch_keep_weights(const BucketResult& solved, const BucketResult& kept, cudaStream_t stream) {
  return launch(keep_weights, {1, kThreads}, stream, solved, kept);
}

cudaError_t launch_use_kept(const KeptStep& step, cudaStream_t stream) {
  if (step.world < 1) return cudaErrorInvalidValue;
  return launch(use_kept, {1, kThreads}, stream, step);
}

}  // namespace bucket_moo::cuda
