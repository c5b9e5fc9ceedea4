#include <cuda_runtime.h>

#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/packed_triangle.hpp>

#include "groups.cuh"
#include "launch.cuh"

namespace bucket_moo::cuda {
namespace {

constexpr int kSumThreads = 128;

__global__ void __launch_bounds__(kWarp)
    group_records_kernel(const StepRecord* __restrict__ records, const RankRows rows, const int own,
                         const bool one_objective, const GroupRecords out, const ObjectiveTable shares) {
  group_records(WarpLanes{}, records, rows, own, one_objective, out);
  make_objective_table(WarpLanes{}, out.member, rows.inside, {}, shares);
}

/// A thread an entry.
__global__ void __launch_bounds__(kSumThreads)
    sum_gramians_kernel(const StepHeader* __restrict__ header, const GramianParts parts, double* __restrict__ packed) {
  const int entry = static_cast<int>(blockIdx.x) * kSumThreads + static_cast<int>(threadIdx.x);
  if (entry >= packed_size(header->k)) return;
  double sum = parts.packed != nullptr ? parts.packed[entry] : 0.0;
  for (int r = 0; r < parts.world; ++r) {
    sum += reinterpret_cast<const double*>(parts.messages + r * parts.pitch)[entry];
  }
  packed[entry] = sum;
}

}  // namespace

cudaError_t launch_group_records(const StepRecord* records, const RankRows& rows, int own, bool one_objective,
                                 const GroupRecords& out, const ObjectiveTable& shares, cudaStream_t stream) {
  if (rows.inside < 1 || own < 0 || own >= rows.across) return cudaErrorInvalidValue;
  return launch(group_records_kernel, {1, kWarp}, stream, records, rows, own, one_objective, out, shares);
}

cudaError_t launch_sum_gramians(const StepHeader* header, const GramianParts& parts, int k_bound, double* packed,
                                cudaStream_t stream) {
  if (k_bound < 1 || k_bound > kMaxObjectives || parts.tail.size > 0) return cudaErrorInvalidValue;
  const int blocks = (packed_size(k_bound) + kSumThreads - 1) / kSumThreads;
  return launch(sum_gramians_kernel, {static_cast<unsigned>(blocks), kSumThreads}, stream, header, parts, packed);
}

}  // namespace bucket_moo::cuda
