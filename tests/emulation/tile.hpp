// Rows of test data, with conversions written with integers only, independent of the kernels'.
#ifndef BUCKET_MOO_EMULATION_TILE_HPP
#define BUCKET_MOO_EMULATION_TILE_HPP

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/rows.hpp"
#include "rows.cuh"

namespace tiles {

using bucket_moo::DType;

inline constexpr DType kDTypes[] = {DType::float32, DType::bfloat16, DType::float16, DType::float64};
inline const char* name_of(DType d) {
  constexpr const char* kNames[] = {"float32", "bfloat16", "float16", "float64"};
  return kNames[static_cast<int>(d)];
}

inline constexpr double kPoison = -12345.0;  // what a kernel has to overwrite

/// Value of a bit pattern with `e` exponent and `m` mantissa bits.
inline double decode(std::uint32_t bits, int e, int m) {
  const std::uint32_t exponent = bits >> m & ((1U << e) - 1);
  const std::uint32_t mantissa = bits & ((1U << m) - 1);
  const double sign = (bits >> (e + m) & 1) != 0 ? -1.0 : 1.0;
  const int bias = (1 << (e - 1)) - 1;
  if (exponent == (1U << e) - 1) return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(static_cast<double>(mantissa), 1 - bias - m);
  return sign * std::ldexp(static_cast<double>(mantissa + (1U << m)), static_cast<int>(exponent) - bias - m);
}

/// Nearest, ties to even, bit pattern; the only rounding there is.
inline std::uint32_t encode(double value, int e, int m) {
  const std::uint32_t sign = std::signbit(value) ? 1U << (e + m) : 0U;
  const int bias = (1 << (e - 1)) - 1;
  const std::uint32_t infinity = ((1U << e) - 1) << m;
  if (std::isnan(value)) return sign | infinity | 1U << (m - 1);
  const double magnitude = std::fabs(value);
  if (std::isinf(value)) return sign | infinity;
  if (magnitude == 0) return sign;
  int exponent = std::ilogb(magnitude);
  if (exponent < 1 - bias) exponent = 1 - bias;
  const double units = std::nearbyint(std::ldexp(magnitude, m - exponent));  // exact before it rounds
  // As an integer count of units the pattern carries by itself from mantissa into exponent, and into Inf.
  const double pattern = static_cast<double>(exponent + bias - 1) * std::ldexp(1.0, m) + units;
  return sign | (pattern >= infinity ? infinity : static_cast<std::uint32_t>(pattern));
}

inline void put(DType d, void* to, double value) {
  if (d == DType::float64) {
    std::memcpy(to, &value, 8);
  } else if (d == DType::float32) {
    const float f = static_cast<float>(value);
    std::memcpy(to, &f, 4);
  } else {
    const auto bits = static_cast<std::uint16_t>(d == DType::bfloat16 ? encode(value, 8, 7) : encode(value, 5, 10));
    std::memcpy(to, &bits, 2);
  }
}

inline double get(DType d, const void* from) {
  if (d == DType::float64) {
    double value;
    std::memcpy(&value, from, 8);
    return value;
  }
  if (d == DType::float32) {
    float f;
    std::memcpy(&f, from, 4);
    return static_cast<double>(f);
  }
  std::uint16_t bits;
  std::memcpy(&bits, from, 2);
  return d == DType::bfloat16 ? decode(bits, 8, 7) : decode(bits, 5, 10);
}

inline std::uint64_t random_state = 1;
inline std::uint64_t random_bits() {  // splitmix64
  std::uint64_t z = random_state += 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}
inline double random_unit() { return static_cast<double>(random_bits() >> 11) * 0x1p-53 * 2 - 1; }

/// How rows lie in memory.
enum class Layout {
  block,       ///< side by side, each 16-byte aligned
  odd_pitch,   ///< side by side, no alignment beyond the element's
  scattered,   ///< anywhere, 16-byte aligned
  misaligned,  ///< anywhere, no alignment beyond the element's
};

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
    if (in_block_) {
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
