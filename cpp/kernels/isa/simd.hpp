#pragma once

// Included by one source file per instruction set, which defines BUCKET_MOO_ISA. Everything sits in a namespace of that
// name, and no inline function of the standard library is used: otherwise the linker could keep the AVX-512 copy of a
// shared inline function for all, and the baseline would crash on the processors it is there for.
#ifndef BUCKET_MOO_ISA
#error "define BUCKET_MOO_ISA before including the kernels"
#endif

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_FMA)
#include <arm_neon.h>
#endif

#define BUCKET_MOO_INLINE inline __attribute__((always_inline))

namespace bucket_moo::isa::BUCKET_MOO_ISA {

/// Bytes of one register, and the side of the square of accumulators that fits in the register file.
#if defined(__AVX512F__)
inline constexpr int kRegisterBytes = 64;
inline constexpr int kTile = 4;  // 16 accumulators, 8 operands, of 32
#elif defined(__AVX2__)
inline constexpr int kRegisterBytes = 32;
inline constexpr int kTile = 3;  // 9 accumulators, 6 operands, of 16
#else
inline constexpr int kRegisterBytes = 16;
inline constexpr int kTile = 3;
#endif

/// Element i of a block is added to partial sum i % kLanes whatever the register width, so that the order of every
/// addition, and with it the result, is the same for every instruction set.
inline constexpr int kLanes = 16;

/// Bytes of one objective's block in the Gramian. The same for every K, so that an entry's bits do not depend on what
/// else is in the Gramian. The blocks of 8 objectives stay in the first-level cache, with room for those being
/// prefetched; those of 64 are 128 kB, which leaves room in the second-level cache. Longer blocks were no faster.
inline constexpr int kBlockBytes = 2048;
template <typename T>
inline constexpr int kGramianBlock = kBlockBytes / static_cast<int>(sizeof(T));

template <typename E, int L>
struct VecOf {
  typedef E type __attribute__((vector_size(sizeof(E) * L)));
};
template <typename E, int L>
using Vec = typename VecOf<E, L>::type;

/// Elements of T in a register.
template <typename T>
inline constexpr int kWidth = kRegisterBytes / static_cast<int>(sizeof(T));

template <typename T>
using Register = Vec<T, kWidth<T>>;

template <typename V>
BUCKET_MOO_INLINE V load(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);  // rows are aligned to their element size only
  return v;
}

template <typename V>
BUCKET_MOO_INLINE void store(void* to, V v) {
  __builtin_memcpy(to, &v, sizeof v);
}

/// Asks for the line `bytes` beyond `from`, which may lie outside the row. The kernels read a block of one row, then of
/// the next: the processor's own prefetchers, which follow a row within a page, lose it there (measured at 8 rows of
/// float32: 0.72 of the read bandwidth without, 0.97 with).
BUCKET_MOO_INLINE void prefetch(const void* from, std::int64_t bytes) {
  __builtin_prefetch(
      reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(from) + static_cast<std::uintptr_t>(bytes)));
}

/// a * b + c in one rounding where the instruction set can. Spelled out because the compiler is not allowed to contract
/// (-ffp-contract=off): what it would fuse differs between compilers, versions and surrounding code.
BUCKET_MOO_INLINE Register<float> multiply_add(Register<float> a, Register<float> b, Register<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_FEATURE_FMA)
  return (Register<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

BUCKET_MOO_INLINE Register<double> multiply_add(Register<double> a, Register<double> b, Register<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#elif defined(__ARM_FEATURE_FMA)
  return (Register<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

}  // namespace bucket_moo::isa::BUCKET_MOO_ISA
