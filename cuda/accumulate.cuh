// Running sums of weighted rows in device memory. Torch-free; nothing here throws, synchronises or allocates.
#ifndef BUCKET_MOO_CUDA_ACCUMULATE_CUH
#define BUCKET_MOO_CUDA_ACCUMULATE_CUH

#include <cuda_runtime_api.h>

#include <bucket_moo/limits.hpp>

#include "rows.cuh"

namespace bucket_moo::cuda {

struct AccumulateArguments {
  DeviceRows rows;  ///< [W, n], on the device
  /// [W], device, each 0, and the row is not read unless `reads_zeros`, or of a magnitude that is a normal float32;
  /// else what it is rounded to in the sum's type.
  const double* coefficient = nullptr;
  const int* objective = nullptr;  ///< [W], device: the sum that a row belongs to; outside [0, *k) it is not read
  /// [count], device: what a sum is multiplied by first, as a coefficient. 0: it is not read and may be uninitialised;
  /// 1: exact, nothing is multiplied.
  const double* decay = nullptr;
  const int* k = nullptr;    ///< device: sums from *k on are not touched
  int count = 0;             ///< sums, in [0, kMaxObjectives]
  bool reads_zeros = false;  ///< as ZeroRows::read: so that NaN and Inf of a row reach a sum that it adds nothing to
  /// Each [n] of accumulation_dtype(rows.dtype), device, in and out, aligned to its element size; apart from one
  /// another and from the rows.
  void* sums[kMaxObjectives] = {};
};

/// Enqueues bucket_moo::accumulate() for each of the first *k sums and the rows that belong to it, to the same bits as
/// on the host: sum = decay * sum + coefficient * row + ..., rows in their order.
///
/// Cost: reads each row once; reads and writes once each sum that has a row or a decay other than 1, and leaves the
/// others alone. With more than 2048 rows, blocks look through their coefficients and objectives again and again.
/// \return cudaErrorInvalidValue for arguments out of range, else what the launch says. Can be captured in a graph.
cudaError_t launch_accumulate(const AccumulateArguments& arguments, cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_ACCUMULATE_CUH
