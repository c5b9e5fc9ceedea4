// A section of rows, as rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "collective/sections.hpp"
#include "kernels/rows.hpp"

namespace bucket_moo {

/// Elements [begin, begin + size) of each row. A row that is nowhere stays so.
class SectionRows {
 public:
  SectionRows(const Rows& rows, const Section& section) : size_(section.size), dtype_(rows.dtype) {
    const std::size_t offset = static_cast<std::size_t>(section.begin) * element_size(rows.dtype);
    for (int r = 0; r < rows.count; ++r) {
      const void* const row = rows.data[r];
      data_.push_back(row == nullptr ? nullptr : static_cast<const std::byte*>(row) + offset);
    }
  }
  Rows rows() const { return {data_.data(), static_cast<int>(data_.size()), size_, dtype_}; }

 private:
  std::vector<const void*> data_;
  std::int64_t size_;
  DType dtype_;
};

using GramianKernel = void (*)(const Rows& rows, const ObjectiveMap& map, double* out);

}  // namespace bucket_moo
