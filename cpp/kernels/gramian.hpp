#pragma once

#include "kernels/rows.hpp"

namespace bucket_moo {

/// Gramian of the objectives' gradients over this tile: out[i, j] = <g_i, g_j>, g_k = sum of share[r] * row[r].
///
/// \param rows  [W, n], any DType; must not be written meanwhile.
/// \param map   rows to objectives, [W]; an objective without a row that is read has zeros in its row and column.
/// \param out   [K, K] float64, row-major, exactly symmetric; overwritten. Unit: squared unit of the rows.
///
/// Accuracy: float32 sums of at most 32 products (16 interleaved lanes over 512 elements), then float64; float64 rows
/// in float64 throughout. Where the float32 products of a block may have overflowed or underflowed they are formed
/// again in float64. Error relative to |g_i| |g_j| at n = 2^20, uniform elements: 1.3e-9 (float32), 1.6e-8 (bfloat16),
/// 8.4e-8 (float16; the low bits of a short number's square are more often small than large, so sums of them are
/// rounded down a little). For float32, bfloat16 and float16 rows
///  - out[k, k] is non-finite only if g_k is (a NaN or Inf in a row that is read), and always then;
///  - out[k, k] is zero only if g_k is, subnormal elements included, even where the caller has set FTZ and DAZ.
/// float64 rows have no wider type to fall back on: elements beyond 1e154 overflow, below 1e-162 vanish.
///
/// Bits: a function of the values alone; pointer alignment, row slots, rows left out and K do not matter, nor does the
/// instruction set as long as it has fused multiply-add (x86 before AVX2 has not and differs in the last bits).
/// NaN payloads are unspecified.
///
/// Cost: reads each row that is not left out once; n K (K + 1) / 2 multiply-adds. Of one core's read bandwidth
/// (AVX-512, bench/cpp/kernel_bandwidth.cpp): float32 all of it up to K = 8, 16-bit types 0.9 up to K = 4 and 0.67 at K
/// = 8. About 230 kB of stack, no allocation. Single-threaded, thread-safe, never throws.
void gramian(const Rows& rows, const ObjectiveMap& map, double* out);

/// As gramian(), but with the same bits on every processor that runs this binary, at a fraction of the speed: for small
/// pieces that several machines compute for themselves and must agree on.
void portable_gramian(const Rows& rows, const ObjectiveMap& map, double* out);

}  // namespace bucket_moo
