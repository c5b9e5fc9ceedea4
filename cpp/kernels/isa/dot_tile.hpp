#pragma once

#include "kernels/isa/simd.hpp"

namespace bucket_moo::isa::BUCKET_MOO_ISA {

template <int L>
BUCKET_MOO_INLINE Vec<double, L> to_double(Vec<float, L> x) {
#if defined(__AVX512F__)
  if constexpr (L == 8) return _mm512_maskz_cvtps_pd(0xff, (__m256)x);  // GCC 12 converts two halves otherwise
#endif
  return __builtin_convertvector(x, Vec<double, L>);
}
template <int L>
BUCKET_MOO_INLINE Vec<double, L> to_double(Vec<double, L> x) {
  return x;
}

template <int L>
BUCKET_MOO_INLINE double sum_register(Vec<double, L> s) {
  if constexpr (L == 2) {
    return s[0] + s[1];
  } else if constexpr (L == 4) {
    return sum_register<2>(__builtin_shufflevector(s, s, 0, 1) + __builtin_shufflevector(s, s, 2, 3));
  } else {
    return sum_register<4>(__builtin_shufflevector(s, s, 0, 1, 2, 3) + __builtin_shufflevector(s, s, 4, 5, 6, 7));
  }
}

/// The lanes of one pair, added in float64: halves onto each other until one is left, whatever the register width.
template <typename T>
BUCKET_MOO_INLINE double sum_lanes(const T* lane) {
  static_assert(kLanes == 16);
  constexpr int L = kWidth<double>;
  constexpr int kParts = kLanes / L;
  Register<double> part[kParts];
  for (int p = 0; p < kParts; ++p) part[p] = to_double<L>(load<Vec<T, L>>(lane + p * L));
#pragma GCC unroll 8
  for (int half = kParts / 2; half > 0; half /= 2) {
    for (int p = 0; p < half; ++p) part[p] = part[p] + part[p + half];
  }
  return sum_register<L>(part[0]);
}

/// Partial sums of the inner products of M rows with N rows, of pairs n >= m only where Triangle (a is b then).
/// Registers narrower than kLanes go over the block, which is in the first-level cache, once for each part of the
/// lanes.
///
/// \param lanes  [M, N, kLanes]
///
/// Not inlined, for the compiler keeps the sums in registers only as long as it does not see what becomes of them.
template <typename T, int M, int N, bool Triangle>
__attribute__((noinline)) void dot_lanes(const T* const* a, const T* const* b, std::int64_t size, T* lanes) {
  for (int part = 0; part < kLanes; part += kWidth<T>) {
    Register<T> sum[M][N] = {};
    const T* pa[M];
    const T* pb[N];
    for (int m = 0; m < M; ++m) pa[m] = a[m] + part;
    for (int n = 0; n < N; ++n) pb[n] = b[n] + part;
    for (std::int64_t i = 0; i < size; i += kLanes) {
      Register<T> x[M];
      Register<T> y[N];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        x[m] = load<Register<T>>(pa[m] + i);
        // Each row is in one triangle. Of use for rows that are read where they lie, harmless for the others.
        if (Triangle) prefetch(pa[m] + i, kBlockBytes);
      }
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) y[n] = Triangle ? x[n] : load<Register<T>>(pb[n] + i);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int n = Triangle ? m : 0; n < N; ++n) sum[m][n] = multiply_add(x[m], y[n], sum[m][n]);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
      for (int n = Triangle ? m : 0; n < N; ++n) store(lanes + (m * N + n) * kLanes + part, sum[m][n]);
    }
  }
}

/// Inner products of M rows with N rows: out[m * stride + n] = <a_m, b_n>, for n >= m only where Triangle (a is b
/// then). Every pair has its own kLanes partial sums, so its bits do not depend on the tile it is computed in.
///
/// \param a, b  [M], [N] pointers to `size` elements; size is a multiple of kLanes
template <typename T, int M, int N, bool Triangle>
void dot_tile(const T* const* a, const T* const* b, std::int64_t size, double* out, int stride) {
  alignas(64) T lanes[M * N * kLanes];
  dot_lanes<T, M, N, Triangle>(a, b, size, lanes);
  for (int m = 0; m < M; ++m) {
    for (int n = Triangle ? m : 0; n < N; ++n) out[m * stride + n] = sum_lanes(lanes + (m * N + n) * kLanes);
  }
}

/// Calls f.template operator()<c>() for the c in [1, kTile] that equals count.
template <typename F>
BUCKET_MOO_INLINE void with_tile_width(int count, F&& f) {
  static_assert(kTile == 3 || kTile == 4);
  switch (count) {
    case 1:
      return f.template operator()<1>();
    case 2:
      return f.template operator()<2>();
    case 3:
      return f.template operator()<3>();
    default:
      return f.template operator()<kTile>();
  }
}

/// Upper triangle of the Gramian of one block: out[i * count + j], i <= j < count.
template <typename T>
void dot_triangle(const T* const* row, int count, std::int64_t size, double* out) {
  for (int i = 0; i < count; i += kTile) {
    const int tall = count - i < kTile ? count - i : kTile;
    with_tile_width(tall,
                    [&]<int M>() { dot_tile<T, M, M, true>(row + i, row + i, size, out + i * count + i, count); });
    for (int j = i + kTile; j < count; j += kTile) {
      const int wide = count - j < kTile ? count - j : kTile;
      with_tile_width(
          wide, [&]<int N>() { dot_tile<T, kTile, N, false>(row + i, row + j, size, out + i * count + j, count); });
    }
  }
}

}  // namespace bucket_moo::isa::BUCKET_MOO_ISA
