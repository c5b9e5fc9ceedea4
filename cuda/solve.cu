// Batched solve on the GPU: the core's solve() under the WarpLanes policy.
#include <cuda_runtime.h>

#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/solve.hpp>

#include "solve.cuh"

namespace bucket_moo::cuda {
namespace {

constexpr int kWarp = 32;

/// One block of one warp per problem: a problem's scratch is then the block's shared memory, and warps need no barrier.
__global__ void __launch_bounds__(kWarp, 1)
    solve_kernel(const Method method, const RandomKey key, const int k, const double* __restrict__ gramians,
                 double* __restrict__ weights, Solution* __restrict__ solutions, double* __restrict__ workspace) {
  extern __shared__ double shared[];
  const std::size_t problem = blockIdx.x;
  const std::size_t size = static_cast<std::size_t>(k);
  double* const scratch = workspace == nullptr ? shared : workspace + problem * solve_scratch_size(k);
  const RandomKey own{key.seed, key.step, key.bucket + problem};
  const Solution solution =
      solve(WarpLanes{}, method, own, k, gramians + problem * size * size, weights + problem * size, scratch);
  if (solutions != nullptr && WarpLanes::lane() == 0) solutions[problem] = solution;
}

std::size_t scratch_bytes(int k) { return solve_scratch_size(k) * sizeof(double); }

bool in_range(int batch, int k) { return batch >= 0 && k >= 1 && k <= kMaxObjectives; }

/// Whether a problem's scratch fits into the shared memory a block may ask for.
cudaError_t fits_shared(int k, bool* fits) {
  int device = 0;
  int available = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  *fits = scratch_bytes(k) <= static_cast<std::size_t>(available);
  return status;
}

}  // namespace

cudaError_t solve_workspace_size(int batch, int k, std::size_t* bytes) {
  if (!in_range(batch, k) || bytes == nullptr) return cudaErrorInvalidValue;
  bool fits = false;
  const cudaError_t status = fits_shared(k, &fits);
  *bytes = fits ? 0 : static_cast<std::size_t>(batch) * scratch_bytes(k);
  return status;
}

cudaError_t launch_solve(const Method& method, RandomKey key, int batch, int k, const double* gramians, double* weights,
                         Solution* solutions, double* workspace, cudaStream_t stream) {
  if (!in_range(batch, k)) return cudaErrorInvalidValue;
  if (batch == 0) return cudaSuccess;
  if (gramians == nullptr || weights == nullptr) return cudaErrorInvalidValue;

  bool fits = false;
  cudaError_t status = fits_shared(k, &fits);
  if (status != cudaSuccess) return status;
  if (!fits && workspace == nullptr) return cudaErrorInvalidValue;

  const std::size_t shared = fits ? scratch_bytes(k) : 0;
  constexpr std::size_t kWithoutOptIn = 48 * 1024;
  if (shared > kWithoutOptIn) {
    status = cudaFuncSetAttribute(solve_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (status != cudaSuccess) return status;
  }
  solve_kernel<<<static_cast<unsigned>(batch), kWarp, shared, stream>>>(method, key, k, gramians, weights, solutions,
                                                                        fits ? nullptr : workspace);
  return cudaGetLastError();
}

}  // namespace bucket_moo::cuda
