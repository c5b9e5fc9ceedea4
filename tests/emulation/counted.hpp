// A float64 that counts what is done with it: the core compiled with `double` defined as Counted tells what a solve
// costs, whatever the compiler makes of it.
#ifndef BUCKET_MOO_EMULATION_COUNTED_HPP
#define BUCKET_MOO_EMULATION_COUNTED_HPP

#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>

#include "cuda_runtime.h"

namespace counted {

/// What one lane has done.
struct Tally {
  long loads = 0;      ///< values read from watched memory
  long divisions = 0;  ///< square roots too
  long shuffles = 0;   ///< values received from another lane
};

/// Whether the running lane is the one that counts, and which memory is watched.
struct Watch {
  bool (*counts)() = nullptr;
  const void* begin = nullptr;
  const void* end = nullptr;
  Tally tally = {};
};
inline Watch watch;

inline bool counts() { return watch.counts != nullptr && watch.counts(); }

class Float64 {
 public:
  Float64() = default;  // as a double, whose value is anything then
  template <class Number>
    requires std::is_arithmetic_v<Number>
  constexpr Float64(Number value) : value_(static_cast<double>(value)) {}  // NOLINT: as a double
  constexpr Float64(const Float64& other) : value_(other.read()) {}
  constexpr Float64& operator=(const Float64& other) {
    value_ = other.read();
    return *this;
  }
  constexpr explicit operator int() const { return static_cast<int>(read()); }

  /// The value, read from where it lies.
  constexpr double read() const {
    if (!std::is_constant_evaluated() && this >= watch.begin && this < watch.end && counts()) ++watch.tally.loads;
    return value_;
  }
  constexpr Float64 operator-() const { return -read(); }
  constexpr Float64& operator+=(const Float64& x) { return *this = *this + x; }
  constexpr Float64& operator-=(const Float64& x) { return *this = *this - x; }
  constexpr Float64& operator*=(const Float64& x) { return *this = *this * x; }
  constexpr Float64& operator/=(const Float64& x) { return *this = *this / x; }
  friend constexpr Float64 operator+(const Float64& x, const Float64& y) { return x.read() + y.read(); }
  friend constexpr Float64 operator-(const Float64& x, const Float64& y) { return x.read() - y.read(); }
  friend constexpr Float64 operator*(const Float64& x, const Float64& y) { return x.read() * y.read(); }
  friend constexpr Float64 operator/(const Float64& x, const Float64& y) {
    if (!std::is_constant_evaluated() && counts()) ++watch.tally.divisions;
    return x.read() / y.read();
  }
  friend constexpr bool operator<(const Float64& x, const Float64& y) { return x.read() < y.read(); }
  friend constexpr bool operator>(const Float64& x, const Float64& y) { return x.read() > y.read(); }
  friend constexpr bool operator<=(const Float64& x, const Float64& y) { return x.read() <= y.read(); }
  friend constexpr bool operator>=(const Float64& x, const Float64& y) { return x.read() >= y.read(); }
  friend constexpr bool operator==(const Float64& x, const Float64& y) { return x.read() == y.read(); }

 private:
  double value_;
};
static_assert(sizeof(Float64) == sizeof(double));

}  // namespace counted

// The core calls these by their names in std.
namespace std {

inline counted::Float64 sqrt(const counted::Float64& x) {
  if (counted::counts()) ++counted::watch.tally.divisions;
  return sqrt(x.read());
}
inline counted::Float64 fabs(const counted::Float64& x) { return fabs(x.read()); }
inline counted::Float64 fma(const counted::Float64& x, const counted::Float64& y, const counted::Float64& z) {
  return fma(x.read(), y.read(), z.read());
}
inline counted::Float64 pow(const counted::Float64& x, const counted::Float64& y) { return pow(x.read(), y.read()); }
inline counted::Float64 copysign(const counted::Float64& x, const counted::Float64& y) {
  return copysign(x.read(), y.read());
}
inline counted::Float64 frexp(const counted::Float64& x, int* exponent) { return frexp(x.read(), exponent); }
inline counted::Float64 ldexp(const counted::Float64& x, int exponent) { return ldexp(x.read(), exponent); }

template <>
class numeric_limits<counted::Float64> : public numeric_limits<double> {};

}  // namespace std

inline counted::Float64 __shfl_sync(unsigned mask, const counted::Float64& value, int lane) {
  if (counted::counts()) ++counted::watch.tally.shuffles;
  return bucket_moo_emulated_shuffle(mask, value.read(), lane);
}
inline int __shfl_sync(unsigned mask, int value, int lane) {
  if (counted::counts()) ++counted::watch.tally.shuffles;
  return bucket_moo_emulated_shuffle(mask, value, lane);
}

#endif  // BUCKET_MOO_EMULATION_COUNTED_HPP
