#pragma once

#include "kernels/rows.hpp"

namespace bucket_moo {

/// The type in which rows of `dtype` are added up: float64 for float64, else float32.
constexpr DType accumulation_dtype(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }

/// Adds weighted rows to a sum: sum = decay * sum + coefficient[0] * row[0] + coefficient[1] * row[1] + ..., from left
/// to right.
///
/// \param rows         [W, n], any DType
/// \param coefficient  [W], each 0 or of a magnitude that is a normal float32
/// \param decay        as a coefficient. 0: the sum is not read, so that it may be uninitialised, and becomes that of
///                     the rows, 0 where none is read. 1: exact, nothing is multiplied.
/// \param zero_rows    by default a row whose coefficient is exactly 0 is not read
/// \param sum          [n] of accumulation_dtype(rows.dtype), in and out; must not overlap the rows
///
/// Multiplied and added in the sum's type, with coefficients rounded to it: NaN stays NaN, what is too large becomes
/// Inf. From a sum that is not read, the result is that of combine() before it rounds.
///
/// Bits: a function of the values alone, the same for every instruction set (no fused multiply-add). NaN payloads are
/// unspecified.
///
/// Cost: reads each row that is not left out once, and reads and writes the sum once for all rows and decay together;
/// not even that if there is no row to read and the decay is 1. No allocation. Single-threaded, thread-safe, never
/// throws.
void accumulate(const Rows& rows, const double* coefficient, double decay, void* sum,
                ZeroRows zero_rows = ZeroRows::skip);

}  // namespace bucket_moo
