// How kernels count up the totals of a state. By one thread at a time.
#ifndef BUCKET_MOO_CUDA_REDUCTION_COUNTERS_CUH
#define BUCKET_MOO_CUDA_REDUCTION_COUNTERS_CUH

#include "solve.cuh"

namespace bucket_moo::cuda {

/// A bucket was reduced with these weights.
__device__ inline void count_reduction(DeviceCounters& counters, const Solution& solution) {
  ++counters.buckets;
  counters.nonfinite += solution.status == Status::nonfinite ? 1 : 0;
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_REDUCTION_COUNTERS_CUH
