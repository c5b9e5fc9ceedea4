// Weighted sum of rows in device memory. Torch-free; none of these functions throws, synchronises or allocates.
#ifndef BUCKET_MOO_CUDA_COMBINE_CUH
#define BUCKET_MOO_CUDA_COMBINE_CUH

#include <cuda_runtime_api.h>

#include "rows.cuh"

namespace bucket_moo::cuda {

/// Enqueues out = sum over r of coefficient[r] * row[r], to the same bits as bucket_moo::combine() on the host.
/// \param rows         on the device
/// \param coefficient  [W] float64, device; a row whose coefficient is exactly 0 is not read
/// \param out          [n], the rows' dtype, device; may be exactly one of the rows, but must not overlap one in part
/// \return cudaErrorInvalidValue for arguments out of range, else what the launch says. Can be captured in a graph.
cudaError_t launch_combine(const DeviceRows& rows, const double* coefficient, void* out, cudaStream_t stream);

/// Enqueues the same for two pieces of a bucket in one kernel: rows into `out`, and tail into `tail_out`.
/// \param tail      rows in a block, on the device, as many as `rows` and of their dtype; or empty
/// \param tail_out  must overlap neither `rows` nor `out`, as `out` must not overlap `tail`
/// \return as above
cudaError_t launch_combine(const DeviceRows& rows, void* out, const DeviceRows& tail, void* tail_out,
                           const double* coefficient, cudaStream_t stream);

/// Enqueues the same, rounded to another dtype.
/// \param out_dtype  of `out` and `tail_out`: combines_to(rows.dtype, out_dtype). If it is not the rows' dtype, neither
///                   of them may overlap a row at all.
/// \param share      [W], device: with it a row of coefficient 0 is read, as by ZeroRows::read, unless its share is 0,
///                   too; nullptr: it is not
/// \return as above
cudaError_t launch_combine(const DeviceRows& rows, void* out, const DeviceRows& tail, void* tail_out, DType out_dtype,
                           const double* coefficient, cudaStream_t stream, const double* share = nullptr);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_COMBINE_CUH
