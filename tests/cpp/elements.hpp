// Elements of the dtypes that kernels take, with conversions written with integers only, independent of the kernels';
// random ones.
#ifndef BUCKET_MOO_TESTS_ELEMENTS_HPP
#define BUCKET_MOO_TESTS_ELEMENTS_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/rows.hpp"

namespace elements {

using bucket_moo::DType;

inline constexpr DType kDTypes[] = {DType::float32, DType::bfloat16, DType::float16, DType::float64};
inline const char* name_of(DType d) {
  constexpr const char* kNames[] = {"float32", "bfloat16", "float16", "float64"};
  return kNames[static_cast<int>(d)];
}

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

/// From BUCKET_MOO_TEST_SEED of the environment, if it is there; says which.
inline void seed_from_environment() {
  const char* const given = std::getenv("BUCKET_MOO_TEST_SEED");
  random_state = given != nullptr ? std::strtoull(given, nullptr, 10) : 1;
  std::printf("BUCKET_MOO_TEST_SEED=%llu\n", static_cast<unsigned long long>(random_state));
}

/// Bits, but for those of a NaN.
inline bool same_elements(DType d, const std::vector<char>& a, const std::vector<char>& b) {
  const std::size_t element = bucket_moo::element_size(d);
  for (std::size_t i = 0; i < a.size(); i += element) {
    if (std::isnan(get(d, &a[i])) && std::isnan(get(d, &b[i]))) continue;
    if (std::memcmp(&a[i], &b[i], element) != 0) return false;
  }
  return a.size() == b.size();
}

}  // namespace elements

#endif  // BUCKET_MOO_TESTS_ELEMENTS_HPP
