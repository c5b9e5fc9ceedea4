// Batched solve on the GPU: the core's solve() under the WarpLanes policy.
#include <cuda_runtime.h>

#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/solve.hpp>

#include "launch.cuh"
#include "solve.cuh"

namespace bucket_moo::cuda {
namespace {

/// One block of one warp per problem: a problem's scratch is then the block's shared memory, and warps need no barrier.
/// One kernel per method, so that each has registers for itself alone.
template <MethodId id>
__global__ void __launch_bounds__(kWarp, 1)
    solve_kernel(const Method method, const RandomKey key, const int k, const double* __restrict__ gramians,
                 double* __restrict__ weights, Solution* __restrict__ solutions, double* __restrict__ workspace,
                 double* __restrict__ states) {
  const std::size_t problem = blockIdx.x;
  const std::size_t size = static_cast<std::size_t>(k);
  double* const scratch = workspace == nullptr ? dynamic_shared<double>() : workspace + problem * solve_scratch_size(k);
  const RandomKey own{key.seed, key.step, key.bucket + problem};
  double* const state = states == nullptr ? nullptr : states + problem * state_size(method, k);
  const Solution solution = solve_one<id>(WarpLanes{}, method, own, k, gramians + problem * size * size,
                                          weights + problem * size, scratch, state);
  if (solutions != nullptr && WarpLanes::lane() == 0) solutions[problem] = solution;
}

using SolveKernel = void (*)(Method, RandomKey, int, const double*, double*, Solution*, double*, double*);

SolveKernel kernel_of(MethodId id) {
  switch (id) {
    case MethodId::mean:
      return solve_kernel<MethodId::mean>;
    case MethodId::mgda:
      return solve_kernel<MethodId::mgda>;
    case MethodId::cagrad:
      return solve_kernel<MethodId::cagrad>;
    case MethodId::pcgrad:
      return solve_kernel<MethodId::pcgrad>;
    case MethodId::upgrad:
      return solve_kernel<MethodId::upgrad>;
    case MethodId::dualproj:
      return solve_kernel<MethodId::dualproj>;
    case MethodId::imtlg:
      return solve_kernel<MethodId::imtlg>;
    case MethodId::aligned_mtl:
      return solve_kernel<MethodId::aligned_mtl>;
    case MethodId::nash_mtl:
      return solve_kernel<MethodId::nash_mtl>;
    case MethodId::fairgrad:
      return solve_kernel<MethodId::fairgrad>;
    case MethodId::config:
      return solve_kernel<MethodId::config>;
    case MethodId::gradvac:
      return solve_kernel<MethodId::gradvac>;
    case MethodId::krum:
      return solve_kernel<MethodId::krum>;
    case MethodId::adasum:
      return solve_kernel<MethodId::adasum>;
  }
  return nullptr;
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
                         Solution* solutions, double* workspace, double* states, cudaStream_t stream) {
  if (!in_range(batch, k)) return cudaErrorInvalidValue;
  if (batch == 0) return cudaSuccess;
  if (gramians == nullptr || weights == nullptr) return cudaErrorInvalidValue;

  const SolveKernel kernel = kernel_of(method.id);
  if (kernel == nullptr) return cudaErrorInvalidValue;
  bool fits = false;
  const cudaError_t status = fits_shared(k, &fits);
  if (status != cudaSuccess) return status;
  if (!fits && workspace == nullptr) return cudaErrorInvalidValue;

  const std::size_t shared = fits ? scratch_bytes(k) : 0;
  return launch(kernel, {static_cast<unsigned>(batch), kWarp, shared}, stream, method, key, k, gramians, weights,
                solutions, fits ? nullptr : workspace, states);
}

}  // namespace bucket_moo::cuda
