// How a kernel tells of the first step that had an error, and what kernels that begin a step have in common.
#ifndef BUCKET_MOO_CUDA_FAILURE_REPORT_CUH
#define BUCKET_MOO_CUDA_FAILURE_REPORT_CUH

#include <bucket_moo/lanes.hpp>
#include <bucket_moo/objective_table.hpp>
#include <cstdint>

#include "gramian.cuh"
#include "step.cuh"

namespace bucket_moo::cuda {

/// As they should be already. If launches that shared them ran at the same time, which they must not, it is that step
/// alone that is wrong.
__device__ inline void clear_tickets(unsigned* tickets) {
  for (int i = WarpLanes::lane(); i < kGramianTickets; i += WarpLanes::count()) tickets[i] = 0;
}

/// For a host that looks at any time: `error` comes last, when the rest has arrived.
__device__ inline void tell_host(const StepHeader& header, const std::int64_t begun, StepNotice* told) {
  told->header.k = header.k;
  told->header.one_to_one = header.one_to_one;
  told->header.culprit = header.culprit;
  told->header.step = header.step;
  told->begun = begun;
  __threadfence_system();
  *static_cast<volatile StepError*>(&told->header.error) = header.error;
}

/// By one warp, which sees the header.
__device__ inline void report_failure(const StepHeader& header, const FailureReport& report) {
  if (threadIdx.x != 0 || report.first->error != StepError::none || header.error == StepError::none) return;
  *report.first = header;
  tell_host(header, report.begun, report.told);
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_FAILURE_REPORT_CUH
