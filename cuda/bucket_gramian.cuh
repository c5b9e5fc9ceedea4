// The Gramian of a bucket, added up by one block from what the ranks sent each other.
#ifndef BUCKET_MOO_CUDA_BUCKET_GRAMIAN_CUH
#define BUCKET_MOO_CUDA_BUCKET_GRAMIAN_CUH

#include <cuda_runtime.h>

#include <bucket_moo/config.hpp>
#include <bucket_moo/objective_table.hpp>
#include <bucket_moo/packed_triangle.hpp>
#include <cstddef>

#include "elements.cuh"
#include "solve.cuh"

namespace bucket_moo::cuda {

template <DType D>
__device__ double tail_element(const TailRows& tail, int r, int at) {
  const void* const row = static_cast<const char*>(tail.base) + r * tail.pitch;
  if constexpr (D == DType::float64) {
    return static_cast<const double*>(row)[at];
  } else {
    return static_cast<double>(Element<D>::value(static_cast<const Bits<D>*>(row)[at]));
  }
}

/// gradient[at, i] = element `at` of objective i's gradient. A thread an element.
template <DType D, int Threads>
__device__ void load_tail(const TailRows& tail, const ObjectiveTable& table, int k, double* gradient) {
  for (int place = static_cast<int>(threadIdx.x); place < k * tail.size; place += Threads) {
    const int i = place / tail.size;
    const int at = place % tail.size;
    const int end = table.begin[i + 1];
    double sum = 0.0;
#pragma unroll 4
    for (int m = table.begin[i]; m < end; ++m) {
      const int r = table.member[m];
      sum += table.share[r] * tail_element<D>(tail, r, at);
    }
    gradient[at * k + i] = sum;
  }
}

/// Doubles of shared memory that a tail of so many elements needs for k objectives.
BUCKET_MOO_HD constexpr std::size_t tail_gradients(int size, int k) {
  return static_cast<std::size_t>(k) * static_cast<std::size_t>(size);
}

/// The sum of the parts, by all `Threads` threads of a block, each of them an entry: entry(i, j, value) is called for
/// every j <= i < k. A barrier has to follow before others read what it wrote.
/// \param gradient  [tail_gradients()], shared memory
template <int Threads, class Entry>
__device__ void add_up_gramian(const GramianParts& parts, const ObjectiveTable& table, int k, double* gradient,
                               Entry entry) {
  const TailRows& tail = parts.tail;
  if (tail.size > 0) {
    switch (tail.dtype) {
      case DType::float64:
        load_tail<DType::float64, Threads>(tail, table, k, gradient);
        break;
      case DType::float32:
        load_tail<DType::float32, Threads>(tail, table, k, gradient);
        break;
      case DType::bfloat16:
        load_tail<DType::bfloat16, Threads>(tail, table, k, gradient);
        break;
      case DType::float16:
        load_tail<DType::float16, Threads>(tail, table, k, gradient);
        break;
    }
    __syncthreads();
  }
  const int entries = packed_size(k);
  for (int p = static_cast<int>(threadIdx.x); p < entries; p += Threads) {
    const int i = packed_row(p);
    const int j = p - packed_size(i);
    double sum = 0.0;
#pragma unroll 8
    for (int at = 0; at < tail.size; ++at) sum += gradient[at * k + i] * gradient[at * k + j];
    if (parts.packed != nullptr) sum += parts.packed[p];
    const std::byte* message = parts.messages;
#pragma unroll 8
    for (int r = 0; r < parts.world; ++r, message += parts.pitch) sum += reinterpret_cast<const double*>(message)[p];
    entry(i, j, sum);
  }
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_BUCKET_GRAMIAN_CUH
