// What a rank's own rows count for that stay on it while their step goes on: with a sketch no gradient is exchanged
// before its weight is known. Torch-free; none of these functions throws, synchronises or allocates.
#ifndef BUCKET_MOO_CUDA_OWN_ROWS_CUH
#define BUCKET_MOO_CUDA_OWN_ROWS_CUH

#include <cuda_runtime_api.h>

#include <bucket_moo/objective_table.hpp>
#include <bucket_moo/pass_table.hpp>

#include "solve.cuh"

namespace bucket_moo::cuda {

/// How one row is added to one sum, as launch_accumulate() takes it where it reads rows of coefficient 0.
struct OwnAddition {
  double coefficient;
  double decay;
  int objective;  ///< 0: the sum; -1: the row is left out
  int k;          ///< 1
};

/// A rank's row of a pass, of a bucket that it keeps to itself. All pointers on the device.
struct OwnRow {
  const StepHeader* header = nullptr;  ///< of the step
  PassTable pass = {};
  int rank = 0;
  bool fresh = false;               ///< nothing was added to the row's sum yet
  OwnAddition* addition = nullptr;  ///< out; nullptr: the row is its sum, to which nothing is added

  /// A sum for each of the rank's objectives: the number of this one in the step, and the unit of its sum. Both
  /// nullptr: one sum of all rows.
  int* number = nullptr;
  double* unit = nullptr;

  // What the row counts for in one sum: weight * share, where the shares of its objective's rows are their weights over
  // `total`.
  BucketResult known = {};  ///< whose weights are in the step's order of objectives; nullptr header: `weight` is it
  double weight = 0.0;
  double total = 0.0;
};

/// Enqueues what begins the addition of a row. A row of weight 0 in its step is left out, and in a step that has an
/// error every row is.
/// \return cudaErrorInvalidValue for arguments out of range, else what the launch says
cudaError_t launch_begin_own_row(const OwnRow& row, cudaStream_t stream);

/// Sums of rows that weights are applied to. All pointers on the device.
struct WeightedSums {
  StepSums sums = {};             ///< of the step
  int count = 0;                  ///< in [1, kMaxObjectives]
  const int* number = nullptr;    ///< [count] of each sum's objective in the step; nullptr: their own
  const double* unit = nullptr;   ///< [count] of each sum; nullptr: one sum, whose rows have been weighted
  BucketResult used = {};         ///< the weights, in the step's order of objectives
  double* coefficient = nullptr;  ///< [count] out, of launch_combine() or launch_scale()
  double* share = nullptr;        ///< [count] out: of each sum in its objective's mean; 0: left out
};

/// Enqueues coefficient[i] = weight * share[i]. All are NaN if the step has an error or the weights are not of as many
/// objectives.
/// \return as above
cudaError_t launch_weigh_sums(const WeightedSums& sums, cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_OWN_ROWS_CUH
