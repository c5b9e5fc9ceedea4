#include <cuda_runtime.h>

#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/packed_triangle.hpp>

#include "failure_report.cuh"
#include "gramian.cuh"
#include "launch.cuh"
#include "passes.cuh"

namespace bucket_moo::cuda {
namespace {

constexpr int kAddThreads = 256;

__global__ void __launch_bounds__(kWarp)
    add_pass_kernel(const StepRecord* __restrict__ records, const int world, const PassRules rules, const StepSums sums,
                    const PassTable pass, unsigned* __restrict__ tickets, const FailureReport report,
                    const StepHeader* __restrict__ found) {
  clear_tickets(tickets);
  add_pass(WarpLanes{}, records, world, rules, sums, pass, found);
  report_failure(*sums.header, report);
}

__global__ void __launch_bounds__(kWarp)
    begin_addition_kernel(const StepHeader* header, const int world, const int rank, const PassTable pass,
                          const bool fresh, double* unit, double* decay, PassShare* share) {
  const WarpLanes lanes;
  if (fresh) {
    for (int i = lanes.lane(); i < kMaxObjectives; i += lanes.count()) unit[i] = 0.0;
  }
  begin_addition(lanes, header->k, world, pass, unit, decay);
  if (lanes.lane() == 0) *share = share_of(pass, world, rank);
}

__global__ void __launch_bounds__(kWarp)
    make_sums_table_kernel(const StepSums sums, const double* unit, const int capacity, const ObjectiveTable table,
                           const ObjectiveRegistry registry, const FailureReport report) {
  make_sums_table(WarpLanes{}, sums, unit, capacity, table);
  if (registry.names != nullptr) assign_slots(WarpLanes{}, sums.record, table, registry);
  report_failure(*table.header, report);
}

__global__ void __launch_bounds__(kAddThreads)
    add_gramian_kernel(const StepHeader* __restrict__ header, const double* __restrict__ gramian, const bool add,
                       double* __restrict__ packed) {
  const int k = header->k;
  for (int i = static_cast<int>(threadIdx.x) / kWarp; i < k; i += kAddThreads / kWarp) {
    for (int j = static_cast<int>(threadIdx.x) % kWarp; j <= i; j += kWarp) {
      const int entry = packed_index(i, j);
      packed[entry] = (add ? packed[entry] : 0.0) + gramian[i * k + j];
    }
  }
}

bool in_range(int count) { return count >= 1 && count <= kMaxObjectives; }

}  // namespace

cudaError_t launch_add_pass(const StepRecord* records, int world, const PassRules& rules, const StepSums& sums,
                            const PassTable& pass, unsigned* tickets, const FailureReport& report, cudaStream_t stream,
                            const StepHeader* found) {
  if (world < 1 || !in_range(rules.limits.objectives)) return cudaErrorInvalidValue;
  return launch(add_pass_kernel, {1, kWarp}, stream, records, world, rules, sums, pass, tickets, report, found);
}

cudaError_t launch_begin_addition(const StepHeader* header, int world, int rank, const PassTable& pass, bool fresh,
                                  double* unit, double* decay, PassShare* share, cudaStream_t stream) {
  if (world < 1 || rank < 0 || rank >= world) return cudaErrorInvalidValue;
  return launch(begin_addition_kernel, {1, kWarp}, stream, header, world, rank, pass, fresh, unit, decay, share);
}

cudaError_t launch_make_sums_table(const StepSums& sums, const double* unit, int capacity, const ObjectiveTable& table,
                                   const ObjectiveRegistry& registry, const FailureReport& report,
                                   cudaStream_t stream) {
  if (!in_range(capacity)) return cudaErrorInvalidValue;
  return launch(make_sums_table_kernel, {1, kWarp}, stream, sums, unit, capacity, table, registry, report);
}

cudaError_t launch_add_gramian(const StepHeader* header, const double* gramian, bool add, double* packed,
                               cudaStream_t stream) {
  return launch(add_gramian_kernel, {1, kAddThreads}, stream, header, gramian, add, packed);
}

}  // namespace bucket_moo::cuda
