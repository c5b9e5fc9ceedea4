#include <cuda_runtime.h>

#include <bucket_moo/lanes.hpp>

#include "failure_report.cuh"
#include "launch.cuh"
#include "step.cuh"

namespace bucket_moo::cuda {
namespace {

__global__ void write_record(const StepRecord own, std::int64_t* counter, StepRecord* slot) {
  if (threadIdx.x != 0) return;
  *slot = own;
  slot->step = ++*counter;
}

__global__ void write_later_record(const StepRecord own, const std::int64_t* step, StepRecord* slot) {
  if (threadIdx.x != 0) return;
  const std::int64_t number = *step;
  *slot = own;
  slot->step = number;
}

__global__ void __launch_bounds__(kWarp)
    make_table(const StepRecord* __restrict__ records, const int world, const StepLimits limits,
               const ObjectiveTable table, const FirstObjectives first, const ObjectiveRegistry registry,
               unsigned* __restrict__ tickets, const FailureReport report, const StepHeader* __restrict__ found) {
  clear_tickets(tickets);
  make_objective_table(WarpLanes{}, records, world, limits, table, found);
  if (first.names != nullptr) require_same_objectives(WarpLanes{}, records, table, first);
  if (registry.names != nullptr) assign_slots(WarpLanes{}, records, table, registry);
  report_failure(*table.header, report);
}

}  // namespace

cudaError_t launch_write_record(const StepRecord& own, std::int64_t* counter, StepRecord* slot, cudaStream_t stream) {
  return launch(write_record, {1, kWarp}, stream, own, counter, slot);
}

cudaError_t launch_write_later_record(const StepRecord& own, const std::int64_t* step, StepRecord* slot,
                                      cudaStream_t stream) {
  return launch(write_later_record, {1, kWarp}, stream, own, step, slot);
}

cudaError_t launch_make_table(const StepRecord* records, int world, const StepLimits& limits,
                              const ObjectiveTable& table, const FirstObjectives& first,
                              const ObjectiveRegistry& registry, unsigned* tickets, const FailureReport& report,
                              cudaStream_t stream, const StepHeader* found) {
  if (world < 1) return cudaErrorInvalidValue;
  return launch(make_table, {1, kWarp}, stream, records, world, limits, table, first, registry, tickets, report, found);
}

}  // namespace bucket_moo::cuda
