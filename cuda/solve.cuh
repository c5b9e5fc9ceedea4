// Batched solve on the GPU: one warp a problem, the same source as on the host. Torch-free.
//
// None of these functions throws, synchronises or allocates.
#ifndef BUCKET_MOO_CUDA_SOLVE_CUH
#define BUCKET_MOO_CUDA_SOLVE_CUH

#include <cuda_runtime_api.h>

#include <bucket_moo/method.hpp>
#include <bucket_moo/random.hpp>
#include <bucket_moo/solution.hpp>
#include <cstddef>

namespace bucket_moo::cuda {

/// Bytes of device workspace that launch_solve() needs on the current device.
/// \param batch number of problems, >= 0
/// \param k     objectives, 1 <= k <= kMaxObjectives
/// \param bytes out: 0 where the scratch of a problem fits into a block's shared memory (K = 64 on sm_80 and newer data
///              centre GPUs)
/// \return cudaErrorInvalidValue for sizes out of range
cudaError_t solve_workspace_size(int batch, int k, std::size_t* bytes);

/// Solves `batch` independent problems of k objectives.
/// \param method    options; their pointers must be device pointers and apply to every problem
/// \param key       problem b uses (seed, step, bucket + b)
/// \param batch     number of problems, >= 0
/// \param k         objectives, 1 <= k <= kMaxObjectives
/// \param gramians  [batch, k, k] float64, device
/// \param weights   [batch, k] float64, device, out
/// \param solutions [batch], device, out; nullptr: not wanted
/// \param workspace solve_workspace_size() bytes, device, 8-byte aligned; nullptr where that is 0. In use until the
///                  kernel has run
/// \param states    [batch, state_size(method, k)] float64, device, in and out, all zeros when fresh; nullptr: every
///                  step is a first step
/// \param stream    where the kernel is enqueued
/// \return cudaErrorInvalidValue for arguments out of range, else what the launch says. Can be captured in a graph.
cudaError_t launch_solve(const Method& method, RandomKey key, int batch, int k, const double* gramians, double* weights,
                         Solution* solutions, double* workspace, double* states, cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_SOLVE_CUH
