#include <cuda_runtime.h>

#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>

#include "launch.cuh"
#include "own_rows.cuh"

namespace bucket_moo::cuda {
namespace {

/// Whether the weights are those of a step of these objectives.
__device__ bool fits(const BucketResult& weights, const StepHeader& step) {
  return step.error == StepError::none && weights.header->error == StepError::none && weights.header->k == step.k;
}

__device__ void add_by_objective(const OwnRow& row, int objective, double coefficient, OwnAddition* addition) {
  const bool counts = coefficient > 0.0;
  const double unit = row.fresh ? 0.0 : *row.unit;
  const double ratio = counts ? unit / row.pass.unit[objective] : 1.0;
  addition->coefficient = coefficient;
  addition->objective = counts ? 0 : -1;
  addition->decay = row.fresh || ratio < kSmallestShare ? 0.0 : ratio;
  *row.number = objective;
  *row.unit = counts ? row.pass.unit[objective] : unit;
}

__device__ void add_to_one(const OwnRow& row, int objective, double coefficient, OwnAddition* addition) {
  const bool is_told = row.known.header == nullptr;
  const bool counts = coefficient > 0.0 && (is_told || fits(row.known, *row.header));
  const double weight = !counts ? 0.0 : is_told ? row.weight : row.known.weights[objective];
  addition->coefficient = counts ? weight * (coefficient * (row.pass.unit[objective] / row.total)) : 0.0;
  addition->objective = counts ? 0 : -1;
  addition->decay = row.fresh ? 0.0 : 1.0;
}

__global__ void __launch_bounds__(kWarp) begin_own_row(const __grid_constant__ OwnRow row) {
  if (threadIdx.x != 0) return;
  const bool refused = row.header->error != StepError::none;  // whose table may be anything
  const int objective = refused ? 0 : row.pass.objective[row.rank];
  const double coefficient = refused ? 0.0 : row.pass.coefficient[row.rank];
  if (row.addition == nullptr) {
    *row.number = objective;
    *row.unit = coefficient > 0.0 ? coefficient * row.pass.unit[objective] : 0.0;
    return;
  }
  if (row.number != nullptr) {
    add_by_objective(row, objective, coefficient, row.addition);
  } else {
    add_to_one(row, objective, coefficient, row.addition);
  }
  row.addition->k = 1;
}

/// Of a sum in the mean of its objective.
__device__ double share_of_sum(const WeightedSums& of, int objective, double unit) {
  if (objective >= of.sums.header->k || !(unit > 0.0)) return 0.0;
  return mean_share(unit, of.sums.unit[objective], of.sums.total[objective]);
}

__global__ void __launch_bounds__(kMaxObjectives) weigh_sums(const __grid_constant__ WeightedSums of) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= of.count) return;
  const bool usable = fits(of.used, *of.sums.header);
  double share = usable ? 1.0 : 0.0;
  double coefficient = share;
  if (usable && of.unit != nullptr) {
    const int objective = of.number == nullptr ? i : of.number[i];
    share = share_of_sum(of, objective, of.unit[i]);
    coefficient = share > 0.0 ? of.used.weights[objective] * share : 0.0;
  }
  of.coefficient[i] = usable ? coefficient : nan("");
  of.share[i] = share;
}

}  // namespace

cudaError_t launch_begin_own_row(const OwnRow& row, cudaStream_t stream) {
  if (row.header == nullptr || row.rank < 0 || (row.number == nullptr) != (row.unit == nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (row.number == nullptr && (row.addition == nullptr || !(row.total >= 0.0))) return cudaErrorInvalidValue;
  return launch(begin_own_row, {1, kWarp}, stream, row);
}

cudaError_t launch_weigh_sums(const WeightedSums& sums, cudaStream_t stream) {
  if (sums.count < 1 || sums.count > kMaxObjectives || sums.used.header == nullptr || sums.coefficient == nullptr ||
      sums.share == nullptr || (sums.unit == nullptr && sums.count != 1)) {
    return cudaErrorInvalidValue;
  }
  return launch(weigh_sums, {1, kMaxObjectives}, stream, sums);
}

}  // namespace bucket_moo::cuda
