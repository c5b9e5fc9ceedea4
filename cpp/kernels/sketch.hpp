#pragma once

#include <bucket_moo/sketch.hpp>
#include <cstdint>

#include "kernels/rows.hpp"

namespace bucket_moo {

/// Type of a sketch's columns: float64 for float64 elements, else float32.
constexpr DType sketch_dtype(DType elements) { return elements == DType::float64 ? DType::float64 : DType::float32; }

/// The sketch of one gradient: out[c] = sum of the elements that `map` sends to column c, with their signs.
///
/// \param row    [n], aligned to its element size
/// \param out    [map.width()] of sketch_dtype(dtype), overwritten; must not overlap the row
///
/// Accuracy: columns are summed in their own type, 64 elements at a time. NaN and Inf stay; a gradient of zeros has a
/// sketch of zeros. Elements of float32 or bfloat16 beyond 1e36 may overflow in a column, as they may in a sum over
/// ranks.
///
/// Bits: a function of the values and the key alone, the same for every instruction set.
///
/// Cost: reads the row once, at about the read bandwidth of one core. About 10 kB of stack, no allocation.
/// Single-threaded, thread-safe, never throws.
void sketch(const void* row, std::int64_t n, DType dtype, const SketchMap& map, void* out);

}  // namespace bucket_moo
