#pragma once

#include <bucket_moo/limits.hpp>
#include <cstddef>
#include <cstdint>

namespace bucket_moo {

/// Element types of a gradient bucket.
enum class DType : int { float32, bfloat16, float16, float64 };

/// Bytes of one element; 0 for a value that is no DType.
std::size_t element_size(DType dtype);

/// W rows of n elements each: this rank's shard of every rank's gradient, `[W, n]`.
/// A row is contiguous; rows need be neither adjacent nor aligned beyond their element size.
struct Rows {
  const void* const* data;  ///< [count] first element of each row
  int count;                ///< W >= 0
  std::int64_t size;        ///< n >= 0, in elements
  DType dtype;
};

/// What a sum does with rows whose coefficient is exactly 0: `skip` them unread, or `read` them, so that a NaN or an
/// Inf in them reaches the sum.
enum class ZeroRows { skip, read };

/// Which objective each row belongs to: objective k's gradient is the sum over its rows of share[r] * row[r].
struct ObjectiveMap {
  const int* objective;  ///< [W] in [0, k)
  const double* share;  ///< [W] 0, or of a magnitude that is a normal float32; 0: the row is not read (a rank left out)
  int k;                ///< K in [0, kMaxObjectives]
};

}  // namespace bucket_moo
