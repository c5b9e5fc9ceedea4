// Inner products in float64, for gradients whose float32 products overflow or underflow. Slow, rarely run.
#ifndef BUCKET_MOO_CUDA_EXACT_PRODUCT_CUH
#define BUCKET_MOO_CUDA_EXACT_PRODUCT_CUH

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "gramian_pass.cuh"
#include "warp_sums.cuh"

namespace bucket_moo::cuda {

template <DType D>
__device__ double exact_element(const void* row, std::int64_t at) {
  return static_cast<double>(Element<D>::value(static_cast<const Bits<D>*>(row)[at]));
}

/// Element `at` of objective k's gradient.
template <DType D>
__device__ double exact_gradient(const GramianPass& pass, int k, std::int64_t at) {
  if (rows_are_objectives(pass)) return exact_element<D>(pass.rows.scattered[k], at);
  double sum = 0.0;
  for (int m = pass.table.begin[k]; m < pass.table.begin[k + 1]; ++m) {
    const int r = pass.table.member[m];
    sum = fma(pass.table.share[r], exact_element<D>(pass.rows.row(r), at), sum);
  }
  return sum;
}

// Not inlined, so that the kernels' registers are free of them; called by whole warps.

/// <g_i, g_j> over elements [begin, end), alike on all lanes.
template <DType D>
__device__ __noinline__ double exact_product(const GramianPass& pass, int i, int j, std::int64_t begin,
                                             std::int64_t end) {
  double sum = 0.0;
#pragma unroll 1
  for (std::int64_t at = begin + static_cast<int>(threadIdx.x % kWarp); at < end; at += kWarp) {
    sum = fma(exact_gradient<D>(pass, i, at), exact_gradient<D>(pass, j, at), sum);
  }
  return warp_sum(sum);
}

/// Whether elements [begin, end) of objective k's gradient are finite: where they are not, float32 says so too.
template <DType D>
__device__ __noinline__ bool finite_gradient(const GramianPass& pass, int k, std::int64_t begin, std::int64_t end) {
  bool finite = true;
#pragma unroll 1
  for (std::int64_t at = begin + static_cast<int>(threadIdx.x % kWarp); at < end; at += kWarp) {
    const double x = exact_gradient<D>(pass, k, at);
    finite = finite && x - x == 0.0;
  }
  return __all_sync(kAllLanes, finite) != 0;
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_EXACT_PRODUCT_CUH
