// bfloat16 conversions, with integers.
#ifndef BUCKET_MOO_EMULATION_CUDA_BF16_H
#define BUCKET_MOO_EMULATION_CUDA_BF16_H

#include "cuda_runtime.h"

struct __nv_bfloat16 {
  unsigned short bits;
};

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const unsigned bits = __float_as_uint(value);
  if (value != value) return {0x7fff};
  return {static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }

#endif  // BUCKET_MOO_EMULATION_CUDA_BF16_H
