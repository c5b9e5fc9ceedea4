#include <cuda_runtime.h>

#include <bucket_moo/lanes.hpp>

#include "gramian.cuh"
#include "launch.cuh"
#include "step.cuh"

namespace bucket_moo::cuda {
namespace {

__global__ void write_record(const StepRecord own, std::int64_t* counter, StepRecord* slot) {
  if (threadIdx.x != 0) return;
  *slot = own;
  slot->step = ++*counter;
}

/// For a host that looks at any time: `error` comes last, when the rest has arrived.
__device__ void tell_host(const StepHeader& header, const std::int64_t begun, StepNotice* told) {
  told->header.k = header.k;
  told->header.one_to_one = header.one_to_one;
  told->header.culprit = header.culprit;
  told->header.step = header.step;
  told->begun = begun;
  __threadfence_system();
  *static_cast<volatile StepError*>(&told->header.error) = header.error;
}

__global__ void __launch_bounds__(kWarp)
    make_table(const StepRecord* __restrict__ records, const int world, const StepLimits limits,
               const ObjectiveTable table, const FirstObjectives first, const ObjectiveRegistry registry,
               unsigned* __restrict__ tickets, StepHeader* failed, StepNotice* told, const std::int64_t begun) {
  // As they should be already. If launches that shared them ran at the same time, which they must not, it is that step
  // alone that is wrong.
  for (int i = static_cast<int>(threadIdx.x); i < kGramianTickets; i += kWarp) tickets[i] = 0;
  make_objective_table(WarpLanes{}, records, world, limits, table);
  if (first.names != nullptr) require_same_objectives(WarpLanes{}, records, table, first);
  if (registry.names != nullptr) assign_slots(WarpLanes{}, records, table, registry);
  if (threadIdx.x == 0 && failed->error == StepError::none && table.header->error != StepError::none) {
    *failed = *table.header;
    tell_host(*failed, begun, told);
  }
}

}  // namespace

cudaError_t launch_write_record(const StepRecord& own, std::int64_t* counter, StepRecord* slot, cudaStream_t stream) {
  return launch(write_record, {1, kWarp}, stream, own, counter, slot);
}

cudaError_t launch_make_table(const StepRecord* records, int world, const StepLimits& limits,
                              const ObjectiveTable& table, const FirstObjectives& first,
                              const ObjectiveRegistry& registry, unsigned* tickets, StepHeader* failed,
                              StepNotice* told, std::int64_t begun, cudaStream_t stream) {
  if (world < 1) return cudaErrorInvalidValue;
  return launch(make_table, {1, kWarp}, stream, records, world, limits, table, first, registry, tickets, failed, told,
                begun);
}

}  // namespace bucket_moo::cuda
