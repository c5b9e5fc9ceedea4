// A rank's bucket times its coefficient of the combination, for reductions that add up the ranks. Torch-free; none of
// these functions throws, synchronises or allocates.
#ifndef BUCKET_MOO_CUDA_SCALE_CUH
#define BUCKET_MOO_CUDA_SCALE_CUH

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/rows.hpp"
#include "solve.cuh"

namespace bucket_moo::cuda {

/// A bucket of a step that takes the weights that are kept for it.
struct KeptStep {
  ObjectiveTable table = {};           ///< of the step, device
  int rank = 0;                        ///< in the table, whose bucket it is
  BucketResult kept = {};              ///< device; nullptr header: no weights are kept
  BucketResult used = {};              ///< device, out: as kept, the step of its header included
  DeviceCounters* counters = nullptr;  ///< as in SolveStep
};

struct ScaleArguments {
  void* values = nullptr;      ///< [n], device, out; aligned to its element size
  const void* from = nullptr;  ///< [n], device, what is multiplied, apart from `values`; nullptr: in place
  std::int64_t size = 0;       ///< n >= 0, in elements
  DType dtype = DType::float32;
  const double* coefficient = nullptr;  ///< [1], device: this rank's coefficient of the combination; NaN after an error
  const double* share = nullptr;        ///< [1], device: this rank's share; 0: left out. Anything after an error
  /// With kept weights, from which the coefficient comes then: enqueues used = kept too. After an error of the step, or
  /// where nothing is kept, the coefficient is NaN, and used.header holds the error.
  KeptStep kept = {};
};

/// Enqueues values = coefficient * from, or coefficient * values in place.
///
/// The product is formed in float32, or in float64 if the values are float64 or the coefficient is no normal float32;
/// then it is rounded to nearest even. A coefficient of 0 multiplies like any other, so that NaN and Inf stay visible;
/// the values of a rank that is left out become zeros and are not read. After an error all become NaN, those of ranks
/// left out too.
///
/// \return cudaErrorInvalidValue for arguments out of range, else what the launch says. Can be captured in a graph.
cudaError_t launch_scale(const ScaleArguments& arguments, cudaStream_t stream);

/// Enqueues the same, in place, for a reduction that multiplies too, as NCCL's pre-multiplied sum does. Afterwards
/// factor * values is what launch_scale() would have made of the values.
///
/// If the values' type can hold the coefficient, the factor is the coefficient and the values are neither read nor
/// written. float64 can, and float32 can if the coefficient is a normal float32. (NCCL takes a factor of the type of
/// the values, and the 16-bit types would round it.) Otherwise, and for ranks that are left out, the values are scaled
/// here and the factor is 1.
///
/// \param factor  [1] of the values' dtype, device, out
/// \return as launch_scale()
cudaError_t launch_prepare_premultiplied(const ScaleArguments& arguments, void* factor, cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_SCALE_CUH
