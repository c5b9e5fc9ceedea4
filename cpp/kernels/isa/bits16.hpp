#pragma once

#include "kernels/isa/simd.hpp"

namespace bucket_moo::isa::BUCKET_MOO_ISA {

template <int L>
using Bits = Vec<std::uint32_t, L>;

/// 16-bit words to 32-bit words and back. By intrinsics: GCC 12 takes __builtin_convertvector of these widths apart
/// into single elements, several times slower than memory.
template <int L>
BUCKET_MOO_INLINE Bits<L> widen_words(Vec<std::uint16_t, L> x) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return (Bits<L>)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)x);  // plain form: GCC 12 warns
#endif
#if defined(__AVX2__)
  if constexpr (L == 8) return (Bits<L>)_mm256_cvtepu16_epi32((__m128i)x);
#endif
#if defined(__SSE2__)
  if constexpr (L == 4) {
    return (Bits<L>)_mm_unpacklo_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(&x)), _mm_setzero_si128());
  }
#endif
  return __builtin_convertvector(x, Bits<L>);
}

/// Of words up to 0xffff.
template <int L>
BUCKET_MOO_INLINE Vec<std::uint16_t, L> narrow_words(Bits<L> x) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return (Vec<std::uint16_t, L>)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)x);
#endif
#if defined(__AVX2__)
  if constexpr (L == 8) {
    const __m256i halves = _mm256_packus_epi32((__m256i)x, (__m256i)x);  // within each 128 bits
    return (Vec<std::uint16_t, L>)_mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0x08));
  }
#endif
#if defined(__SSE2__)
  if constexpr (L == 4) {
    const __m128i sign_extended = _mm_srai_epi32(_mm_slli_epi32((__m128i)x, 16), 16);  // SSE2 packs signed words only
    Vec<std::uint16_t, L> result;
    _mm_storel_epi64(reinterpret_cast<__m128i*>(&result), _mm_packs_epi32(sign_extended, sign_extended));
    return result;
  }
#endif
  return __builtin_convertvector(x, Vec<std::uint16_t, L>);
}

}  // namespace bucket_moo::isa::BUCKET_MOO_ISA
