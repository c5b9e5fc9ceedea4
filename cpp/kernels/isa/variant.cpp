#include "kernels/isa/variant.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace bucket_moo::isa {

#define BUCKET_MOO_DECLARE_VARIANT(name)                                  \
  namespace name {                                                        \
  void gramian(const Rows&, const ObjectiveMap&, double*);                \
  void combine(const Rows&, const double*, ZeroRows, void*, DType);       \
  void accumulate(const Rows&, const double*, double, ZeroRows, void*);   \
  void sketch(const void*, std::int64_t, DType, const SketchMap&, void*); \
  }
BUCKET_MOO_DECLARE_VARIANT(baseline)
#if defined(__x86_64__)
BUCKET_MOO_DECLARE_VARIANT(avx2)
BUCKET_MOO_DECLARE_VARIANT(avx512)
#endif
#undef BUCKET_MOO_DECLARE_VARIANT

namespace {

bool always() { return true; }

#if defined(__x86_64__)
constexpr bool kBaselineFuses = false;

/// Not every clang knows the name "f16c" in __builtin_cpu_supports; the bit has been in leaf 1 since Ivy Bridge.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#elif defined(__ARM_FEATURE_FMA)
constexpr bool kBaselineFuses = true;
#else
constexpr bool kBaselineFuses = false;
#endif

constexpr Variant kVariants[] = {
    {"baseline", kBaselineFuses, always, baseline::gramian, baseline::combine, baseline::accumulate, baseline::sketch},
#if defined(__x86_64__)
    {"avx2", true, has_avx2, avx2::gramian, avx2::combine, avx2::accumulate, avx2::sketch},
    {"avx512", true, has_avx512, avx512::gramian, avx512::combine, avx512::accumulate, avx512::sketch},
#endif
};
constexpr int kCount = static_cast<int>(sizeof kVariants / sizeof kVariants[0]);

const Variant& choose() {
  int best = 0;
  for (int i = 1; i < kCount; ++i) {
    if (kVariants[i].supported()) best = i;
  }
  return kVariants[best];
}

}  // namespace

const Variant* variants(int* count) {
  *count = kCount;
  return kVariants;
}

const Variant& active_variant() {
  static const Variant& chosen = choose();
  return chosen;
}

}  // namespace bucket_moo::isa
