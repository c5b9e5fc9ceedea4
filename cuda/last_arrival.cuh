// Which of several blocks comes last, so that it can go on with what all of them wrote.
#ifndef BUCKET_MOO_CUDA_LAST_ARRIVAL_CUH
#define BUCKET_MOO_CUDA_LAST_ARRIVAL_CUH

#include <cuda_runtime.h>

namespace bucket_moo::cuda {

/// Called by all threads of `count` blocks, which share a ticket that is 0 before, and again afterwards.
/// \return whether this is the last block to call; it sees what all threads of the others wrote to global memory
/// before.
__device__ inline bool is_last_arrival(unsigned* ticket, int count) {
  __syncthreads();
  bool last = false;
  if (threadIdx.x == 0) {
    const auto most = static_cast<unsigned>(count - 1);
    __threadfence();  // what this block wrote comes before the ticket
    last = atomicInc(ticket, most) == most;
    __threadfence();  // what the others wrote comes before what is read from now on
  }
  return __syncthreads_or(last ? 1 : 0) != 0;
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_LAST_ARRIVAL_CUH
