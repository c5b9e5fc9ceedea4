// float16 conversions, in plain arithmetic.
#ifndef BUCKET_MOO_EMULATION_CUDA_FP16_H
#define BUCKET_MOO_EMULATION_CUDA_FP16_H

#include "cuda_runtime.h"

struct __half {
  unsigned short bits;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }

inline float __half2float(__half value) {
  const unsigned sign = static_cast<unsigned>(value.bits & 0x8000u) << 16;
  const unsigned exponent = value.bits >> 10 & 31u;
  const unsigned mantissa = value.bits & 0x3ffu;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
  const float tiny = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -tiny : tiny;
}

inline __half __float2half_rn(float value) {
  const unsigned bits = __float_as_uint(value);
  const unsigned sign = bits >> 16 & 0x8000u;
  const float magnitude = __uint_as_float(bits & 0x7fffffffu);
  unsigned result;
  if (value != value) {
    result = 0x7fffu;
  } else if (magnitude >= 65520.0f) {
    result = 0x7c00u;
  } else if (magnitude < 0x1p-14f) {
    result = static_cast<unsigned>(std::nearbyint(magnitude * 0x1p24f));  // in units of the smallest; exact before
  } else {
    const unsigned shifted = __float_as_uint(magnitude) - (112u << 23);
    result = (shifted + 0xfffu + (shifted >> 13 & 1u)) >> 13;
  }
  return {static_cast<unsigned short>(sign | result)};
}

#endif  // BUCKET_MOO_EMULATION_CUDA_FP16_H
