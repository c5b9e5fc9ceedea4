#include <cuda_runtime.h>

#include <bucket_moo/limits.hpp>
#include <bucket_moo/packed_triangle.hpp>

#include "batches.cuh"
#include "launch.cuh"

namespace bucket_moo::cuda {
namespace {

constexpr unsigned kThreads = 256;

/// A thread a number.
constexpr unsigned blocks_of(std::int64_t count) { return static_cast<unsigned>((count + kThreads - 1) / kThreads); }

/// Most numbers that a launch has threads for.
constexpr std::int64_t kMost = (std::int64_t{1} << 31) - 1;

__device__ std::int64_t own_number() { return static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; }

__global__ void __launch_bounds__(kThreads)
    convert_numbers(const Numbers from, const std::int64_t count, const Numbers to) {
  const std::int64_t i = own_number();
  if (i < count) to.set(i, from.get(i));
}

__global__ void __launch_bounds__(kThreads)
    unpack_batch(const double* __restrict__ packed, const std::int64_t count, const int k, const Numbers full) {
  const std::int64_t at = own_number();
  if (at >= count) return;
  const std::int64_t problem = at / (k * k);
  const int entry = static_cast<int>(at % (k * k));
  const int i = entry / k;
  const int j = entry % k;
  full.set(at, packed[problem * packed_size(k) + (i > j ? packed_index(i, j) : packed_index(j, i))]);
}

__global__ void __launch_bounds__(kThreads)
    add_batch_parts(const Numbers parts, const std::int64_t total, const int count, const int size,
                    double* __restrict__ sum, const Numbers rounded) {
  const std::int64_t at = own_number();
  if (at >= total) return;
  const std::int64_t first = at / size * count * size + at % size;
  double value = parts.get(first);
  for (int p = 1; p < count; ++p) value += parts.get(first + static_cast<std::int64_t>(p) * size);
  sum[at] = value;
  rounded.set(at, value);
}

/// A thread a row; there are at least as many rows as objectives or problems.
__global__ void __launch_bounds__(kThreads)
    hand_out_solutions(const RowObjectives rows, const double* __restrict__ weights,
                       const Solution* __restrict__ solutions, const Numbers shares, const BatchResults out) {
  const std::int64_t at = own_number();
  if (at >= static_cast<std::int64_t>(rows.batch) * rows.rows) return;
  const std::int64_t problem = at / rows.rows;
  const int objective = rows.objective[at % rows.rows];
  out.coefficients.set(at, weights[problem * rows.k + objective] * shares.get(at));
  if (at < static_cast<std::int64_t>(rows.batch) * rows.k) out.weights.set(at, weights[at]);
  if (at >= rows.batch) return;
  out.status[at] = static_cast<std::int32_t>(solutions[at].status);
  out.iterations[at] = solutions[at].iterations;
  out.residual.set(at, solutions[at].residual);
}

}  // namespace

cudaError_t launch_convert(Numbers from, std::int64_t count, Numbers to, cudaStream_t stream) {
  if (count < 0 || count > kMost) return cudaErrorInvalidValue;
  if (count == 0) return cudaSuccess;
  if (from.data == nullptr || to.data == nullptr) return cudaErrorInvalidValue;
  return launch(convert_numbers, {blocks_of(count), kThreads}, stream, from, count, to);
}

cudaError_t launch_unpack_gramians(const double* packed, int batch, int k, Numbers full, cudaStream_t stream) {
  const std::int64_t count = static_cast<std::int64_t>(batch) * k * k;
  if (batch < 0 || k < 1 || k > kMaxObjectives || count > kMost) return cudaErrorInvalidValue;
  if (count == 0) return cudaSuccess;
  if (packed == nullptr || full.data == nullptr) return cudaErrorInvalidValue;
  return launch(unpack_batch, {blocks_of(count), kThreads}, stream, packed, count, k, full);
}

cudaError_t launch_add_parts(Numbers parts, int batch, int count, int size, double* sum, Numbers rounded,
                             cudaStream_t stream) {
  const std::int64_t total = static_cast<std::int64_t>(batch) * size;
  if (batch < 0 || count < 1 || size < 1 || total > kMost) return cudaErrorInvalidValue;
  if (total == 0) return cudaSuccess;
  if (parts.data == nullptr || sum == nullptr || rounded.data == nullptr) return cudaErrorInvalidValue;
  return launch(add_batch_parts, {blocks_of(total), kThreads}, stream, parts, total, count, size, sum, rounded);
}

cudaError_t launch_hand_out(const RowObjectives& rows, const double* weights, const Solution* solutions, Numbers shares,
                            const BatchResults& out, cudaStream_t stream) {
  const std::int64_t count = static_cast<std::int64_t>(rows.batch) * rows.rows;
  if (rows.batch < 0 || rows.k < 1 || rows.k > rows.rows || rows.objective == nullptr || count > kMost) {
    return cudaErrorInvalidValue;
  }
  if (count == 0) return cudaSuccess;
  if (weights == nullptr || solutions == nullptr || shares.data == nullptr || out.coefficients.data == nullptr ||
      out.weights.data == nullptr || out.status == nullptr || out.iterations == nullptr ||
      out.residual.data == nullptr) {
    return cudaErrorInvalidValue;
  }
  return launch(hand_out_solutions, {blocks_of(count), kThreads}, stream, rows, weights, solutions, shares, out);
}

}  // namespace bucket_moo::cuda
