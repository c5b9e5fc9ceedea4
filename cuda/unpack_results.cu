#include <cuda_runtime.h>

#include <bucket_moo/limits.hpp>
#include <bucket_moo/packed_triangle.hpp>

#include "launch.cuh"
#include "unpack_results.cuh"

namespace bucket_moo::cuda {
namespace {

constexpr unsigned kThreads = 256;

__global__ void unpack_gramian(const double* __restrict__ packed, const int k, double* __restrict__ full) {
  for (int e = static_cast<int>(threadIdx.x); e < k * k; e += static_cast<int>(blockDim.x)) {
    const int i = e / k;
    const int j = e % k;
    full[e] = packed[i > j ? packed_index(i, j) : packed_index(j, i)];
  }
}

__global__ void unpack_solutions(const Solution* __restrict__ solutions, const int batch,
                                 std::int64_t* __restrict__ status, std::int64_t* __restrict__ iterations,
                                 double* __restrict__ residual) {
  const std::int64_t b = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (b >= batch) return;
  status[b] = static_cast<std::int64_t>(solutions[b].status);
  iterations[b] = solutions[b].iterations;
  residual[b] = solutions[b].residual;
}

}  // namespace

cudaError_t launch_unpack_gramian(const double* packed, int k, double* full, cudaStream_t stream) {
  if (packed == nullptr || full == nullptr || k < 1 || k > kMaxObjectives) return cudaErrorInvalidValue;
  return launch(unpack_gramian, {1, kThreads}, stream, packed, k, full);
}

cudaError_t launch_unpack_solutions(const Solution* solutions, int batch, std::int64_t* status,
                                    std::int64_t* iterations, double* residual, cudaStream_t stream) {
  if (batch < 0) return cudaErrorInvalidValue;
  if (batch == 0) return cudaSuccess;
  if (solutions == nullptr || status == nullptr || iterations == nullptr || residual == nullptr) {
    return cudaErrorInvalidValue;
  }
  const auto blocks = (static_cast<unsigned>(batch) + kThreads - 1) / kThreads;
  return launch(unpack_solutions, {blocks, kThreads}, stream, solutions, batch, status, iterations, residual);
}

}  // namespace bucket_moo::cuda
