#pragma once

#include "kernels/isa/bits16.hpp"
#include "kernels/rows.hpp"

namespace bucket_moo::isa::BUCKET_MOO_ISA {

template <DType D>
struct StorageOf;
template <>
struct StorageOf<DType::float32> {
  using type = float;
};
template <>
struct StorageOf<DType::bfloat16> {
  using type = std::uint16_t;
};
template <>
struct StorageOf<DType::float16> {
  using type = std::uint16_t;
};
template <>
struct StorageOf<DType::float64> {
  using type = double;
};
/// How an element lies in memory.
template <DType D>
using Storage = typename StorageOf<D>::type;

template <int L>
using Mask = Vec<std::int32_t, L>;

template <int L>
BUCKET_MOO_INLINE Bits<L> select(Mask<L> mask, Bits<L> yes, Bits<L> no) {
  return ((Bits<L>)mask & yes) | (~(Bits<L>)mask & no);
}

/// float32 bits without the sign compare as signed integers, which every instruction set can do.
template <int L>
BUCKET_MOO_INLINE Mask<L> above(Bits<L> magnitude, std::int32_t bound) {
  return (Mask<L>)magnitude > bound;
}

template <int L>
BUCKET_MOO_INLINE Vec<float, L> float_from_bfloat16(Vec<std::uint16_t, L> x) {
  return (Vec<float, L>)(widen_words<L>(x) << 16);
}

template <int L>
BUCKET_MOO_INLINE Vec<std::uint16_t, L> bfloat16_from_float(Vec<float, L> x) {
  const Bits<L> bits = (Bits<L>)x;
  const Bits<L> rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;  // to nearest even; the carry makes Inf
  const Bits<L> nan = (bits >> 16) | 0x40U;                              // the carry could make a NaN an Inf or zero
  return narrow_words<L>(select<L>(above<L>(bits & 0x7fffffffU, 0x7f800000), nan, rounded));
}

/// Source: F. Giesen, "half to float done quick"; without float32 subnormals, so that FTZ and DAZ do not matter.
template <int L>
BUCKET_MOO_INLINE Vec<float, L> float_from_float16_portable(Vec<std::uint16_t, L> x) {
  const Bits<L> half = widen_words<L>(x);
  const Bits<L> magnitude = (half & 0x7fffU) << 13;
  const Bits<L> normal = magnitude + (112U << 23);
  const Bits<L> special = magnitude + (224U << 23);
  const Bits<L> smallest = Bits<L>{} + (113U << 23);  // 2^-14
  const Bits<L> subnormal = (Bits<L>)((Vec<float, L>)(magnitude + (113U << 23)) - (Vec<float, L>)smallest);
  Bits<L> result = select<L>(above<L>(magnitude, 0x0f7fffff), special, normal);
  result = select<L>(above<L>(magnitude, 0x007fffff), result, subnormal);
  return (Vec<float, L>)(result | ((half & 0x8000U) << 16));
}

/// Source: F. Giesen, "float->half variants", to nearest even.
template <int L>
BUCKET_MOO_INLINE Vec<std::uint16_t, L> float16_from_float_portable(Vec<float, L> x) {
  const Bits<L> bits = (Bits<L>)x;
  const Bits<L> magnitude = bits & 0x7fffffffU;
  const Bits<L> normal = (magnitude + 0xfffU + ((magnitude >> 13) & 1U) - (112U << 23)) >> 13;
  // Adding 1/2 leaves the mantissa in units of 2^-24, the smallest float16, rounded by the addition itself.
  const Bits<L> half = Bits<L>{} + (126U << 23);
  const Bits<L> subnormal = (Bits<L>)((Vec<float, L>)magnitude + (Vec<float, L>)half) - half;
  const Bits<L> nan = 0x7e00U | ((magnitude >> 13) & 0x3ffU);
  const Bits<L> infinity = Bits<L>{} + 0x7c00U;
  Bits<L> result = select<L>(above<L>(magnitude, 0x387fffff), normal, subnormal);  // from 2^-14
  result = select<L>(above<L>(magnitude, 0x477fffff), infinity, result);           // from 2^16
  result = select<L>(above<L>(magnitude, 0x7f800000), nan, result);
  return narrow_words<L>(result | ((bits >> 16) & 0x8000U));
}

#if defined(__AVX512F__)
/// The masked forms, because GCC 12 says of the plain ones that they read something uninitialised.
inline constexpr __mmask16 kAllLanes = 0xffff;
#endif

template <int L>
BUCKET_MOO_INLINE Vec<float, L> float_from_float16(Vec<std::uint16_t, L> x) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return (Vec<float, L>)_mm512_maskz_cvtph_ps(kAllLanes, (__m256i)x);
#endif
#if defined(__F16C__)
  if constexpr (L == 8) return (Vec<float, L>)_mm256_cvtph_ps((__m128i)x);
#endif
  return float_from_float16_portable<L>(x);
}

template <int L>
BUCKET_MOO_INLINE Vec<std::uint16_t, L> float16_from_float(Vec<float, L> x) {
#if defined(__AVX512F__)
  if constexpr (L == 16) {
    return (Vec<std::uint16_t, L>)_mm512_maskz_cvtps_ph(kAllLanes, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
  }
#endif
#if defined(__F16C__)
  if constexpr (L == 8) return (Vec<std::uint16_t, L>)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#endif
  return float16_from_float_portable<L>(x);
}

/// Exact. Float32 subnormals go by way of integers, so that they survive where the caller has set DAZ.
template <int L>
BUCKET_MOO_INLINE Vec<double, L> double_from_float(Vec<float, L> x) {
  using Wide = Vec<std::int64_t, L>;
  const Bits<L> bits = (Bits<L>)x;
  const Mask<L> is_normal = above<L>(bits & 0x7fffffffU, 0x007fffff);
  const Mask<L> negative = (Mask<L>)bits >> 31;
  const Mask<L> mantissa = ((Mask<L>)(bits & 0x7fffffU) ^ negative) - negative;
  const Wide tiny = (Wide)(__builtin_convertvector(mantissa, Vec<double, L>) * 0x1p-149);
  const Wide wide = (Wide) __builtin_convertvector(x, Vec<double, L>);
  const Wide mask = __builtin_convertvector(is_normal, Wide);
  return (Vec<double, L>)((mask & wide) | (~mask & tiny));
}

/// A register of the accumulation type T from as many elements of dtype D; exact.
template <typename T, DType D>
BUCKET_MOO_INLINE Register<T> widen(Vec<Storage<D>, kWidth<T>> x) {
  constexpr int L = kWidth<T>;
  if constexpr (D == DType::float64) {
    static_assert(sizeof(T) == 8, "float64 is accumulated in float64");
    return x;
  } else {
    Vec<float, L> f;
    if constexpr (D == DType::float32) {
      f = x;
    } else if constexpr (D == DType::bfloat16) {
      f = float_from_bfloat16<L>(x);
    } else {
      f = float_from_float16<L>(x);
    }
    if constexpr (sizeof(T) == 8) {
      return double_from_float<L>(f);
    } else {
      return f;
    }
  }
}

/// The inverse, rounded to nearest even (float64 to 16 bits: by way of float32).
template <typename T, DType D>
BUCKET_MOO_INLINE Vec<Storage<D>, kWidth<T>> narrow(Register<T> x) {
  constexpr int L = kWidth<T>;
  if constexpr (D == DType::float64) {
    static_assert(sizeof(T) == 8, "float64 is accumulated in float64");
    return x;
  } else {
    Vec<float, L> f;
    if constexpr (sizeof(T) == 8) {
      f = __builtin_convertvector(x, Vec<float, L>);
    } else {
      f = x;
    }
    if constexpr (D == DType::float32) {
      return f;
    } else if constexpr (D == DType::bfloat16) {
      return bfloat16_from_float<L>(f);
    } else {
      return float16_from_float<L>(f);
    }
  }
}

}  // namespace bucket_moo::isa::BUCKET_MOO_ISA
