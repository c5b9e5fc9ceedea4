#pragma once

#include "kernels/rows.hpp"

namespace bucket_moo {

/// Weighted sum of the rows: out = sum over r of coefficient[r] * row[r].
///
/// \param rows         [W, n], any DType.
/// \param coefficient  [W] float64
/// \param zero_rows    by default a row whose coefficient is exactly 0 is not read
/// \param out          [n], the rows' dtype; may be exactly one of the rows, but must not overlap one in part.
///
/// Accumulates in row order in float32 (float64 for float64 rows, and where a coefficient is no normal float32) and
/// rounds once, to nearest even: NaN stays NaN, what is too large becomes Inf. Coefficients are rounded to float32 when
/// the accumulation is in float32.
///
/// Bits: a function of the values alone, the same for every instruction set (no fused multiply-add), so that ranks
/// which combine the same tail on different machines stay replicas. NaN payloads are unspecified.
///
/// Cost: reads each row that is not left out once and writes n elements, at 0.8 to 1.1 of memcpy's bandwidth. No
/// allocation.
/// Single-threaded, thread-safe, never throws.
void combine(const Rows& rows, const double* coefficient, void* out, ZeroRows zero_rows = ZeroRows::skip);

/// Whether rows of `from` can be combined to elements of `to`: of the same dtype, or from float32 to 16 bits.
constexpr bool combines_to(DType from, DType to) {
  return from == to || (from == DType::float32 && (to == DType::bfloat16 || to == DType::float16));
}

/// The same, rounded to another dtype: for rows that are themselves sums of elements of it.
///
/// \param out        [n], of `out_dtype`; if that is not the rows' dtype, it must not overlap the rows at all
/// \param out_dtype  combines_to(rows.dtype, out_dtype)
void combine(const Rows& rows, const double* coefficient, void* out, DType out_dtype,
             ZeroRows zero_rows = ZeroRows::skip);

}  // namespace bucket_moo
