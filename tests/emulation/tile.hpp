// Rows of test data as kernels on a device take them.
#ifndef BUCKET_MOO_EMULATION_TILE_HPP
#define BUCKET_MOO_EMULATION_TILE_HPP

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "elements.hpp"
#include "kernels/rows.hpp"
#include "rows.cuh"

namespace tiles {

using namespace elements;

inline constexpr double kPoison = -12345.0;  // what a kernel has to overwrite

/// Whether to leave out the next of many similar cases, where time is short: BUCKET_MOO_TEST_EVERY=n of the environment
/// leaves every n-th.
inline bool leave_out() {
  static const char* const given = std::getenv("BUCKET_MOO_TEST_EVERY");
  static const int every = given == nullptr ? 1 : std::atoi(given);
  static int number = 0;
  return every > 1 && ++number % every != 0;
}

/// How rows lie in memory.
enum class Layout {
  block,       ///< side by side, each 16-byte aligned
  odd_pitch,   ///< side by side, no alignment beyond the element's
  scattered,   ///< anywhere, 16-byte aligned
  misaligned,  ///< anywhere, no alignment beyond the element's
};
inline constexpr Layout kLayouts[] = {Layout::block, Layout::odd_pitch, Layout::scattered, Layout::misaligned};

/// W rows of n elements, random unless told otherwise, with NaN around them.
class Tile {
 public:
  Tile(DType d, int count, std::int64_t n, Layout layout = Layout::block) : dtype(d), size(n) {
    const std::size_t element = bucket_moo::element_size(d);
    const std::size_t row =
        (static_cast<std::size_t>(n) * element + 47) / 16 * 16 + (layout == Layout::odd_pitch ? element : 0);
    memory_.resize(row * static_cast<std::size_t>(count) + 64, char(-1));
    std::size_t start = 16 - reinterpret_cast<std::uintptr_t>(memory_.data()) % 16;
    if (layout == Layout::odd_pitch) start += element;
    for (int r = 0; r < count; ++r) {
      const std::size_t skip = layout == Layout::misaligned ? static_cast<std::size_t>(r % 5 + 1) * element : 0;
      offset_.push_back(start + static_cast<std::size_t>(r) * row + skip);
    }
    in_block_ = layout == Layout::block || layout == Layout::odd_pitch;
    pitch_ = static_cast<std::int64_t>(row);
    for (int r = 0; r < count; ++r) fill(r, 1.0);
  }
  Tile(const Tile&) = delete;
  Tile& operator=(const Tile&) = delete;

  int count() const { return static_cast<int>(offset_.size()); }
  char* row(int r) { return memory_.data() + offset_[static_cast<std::size_t>(r)]; }
  const char* row(int r) const { return memory_.data() + offset_[static_cast<std::size_t>(r)]; }
  std::size_t row_bytes() const { return static_cast<std::size_t>(size) * bucket_moo::element_size(dtype); }
  double value(int r, std::int64_t i) const {
    return get(dtype, row(r) + static_cast<std::size_t>(i) * bucket_moo::element_size(dtype));
  }
  void set(int r, std::int64_t i, double v) {
    put(dtype, row(r) + static_cast<std::size_t>(i) * bucket_moo::element_size(dtype), v);
  }
  void set_all(int r, double v) {
    for (std::int64_t i = 0; i < size; ++i) set(r, i, v);
  }
  /// Random, with a common part, so that off-diagonal entries are not all noise.
  void fill(int r, double scale) {
    for (std::int64_t i = 0; i < size; ++i) set(r, i, scale * (random_unit() + 0.3));
  }

  bucket_moo::cuda::DeviceRows device() const {
    bucket_moo::cuda::DeviceRows rows;
    rows.count = count();
    rows.size = size;
    rows.dtype = dtype;
    if (in_block_ && count() > 0) {
      rows.base = row(0);
      rows.pitch = pitch_;
    } else {
      for (int r = 0; r < count(); ++r) rows.scattered[r] = row(r);
    }
    return rows;
  }
  std::vector<const void*> pointers() const {
    std::vector<const void*> all;
    for (int r = 0; r < count(); ++r) all.push_back(row(r));
    return all;
  }

  DType dtype;
  std::int64_t size;

 private:
  std::vector<char> memory_;
  std::vector<std::size_t> offset_;
  std::int64_t pitch_ = 0;
  bool in_block_ = true;
};

}  // namespace tiles

#endif  // BUCKET_MOO_EMULATION_TILE_HPP
