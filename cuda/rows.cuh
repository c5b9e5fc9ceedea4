// Rows of gradients in device memory, as kernels take them by value.
#ifndef BUCKET_MOO_CUDA_ROWS_CUH
#define BUCKET_MOO_CUDA_ROWS_CUH

#include <bucket_moo/config.hpp>
#include <bucket_moo/limits.hpp>
#include <cstddef>
#include <cstdint>

#include "kernels/rows.hpp"

namespace bucket_moo::cuda {

/// W rows of n elements in device memory: side by side in one block (any W), or anywhere (at most kMaxObjectives).
/// A row is contiguous and aligned to its element size.
struct DeviceRows {
  const void* base = nullptr;  ///< row 0 of a block; nullptr: the rows are at `scattered`, or n is 0
  std::int64_t pitch = 0;      ///< bytes from one row of the block to the next
  const void* scattered[kMaxObjectives] = {};
  int count = 0;          ///< W >= 0
  std::int64_t size = 0;  ///< n >= 0, in elements
  DType dtype = DType::float32;

  BUCKET_MOO_HD const void* row(int r) const {
    return base != nullptr ? static_cast<const char*>(base) + r * pitch : scattered[r];
  }
};

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_ROWS_CUH
