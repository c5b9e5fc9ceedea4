// Elements of the rows: 16 bytes at a time, and as float32.
#ifndef BUCKET_MOO_CUDA_ELEMENTS_CUH
#define BUCKET_MOO_CUDA_ELEMENTS_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "rows.cuh"

namespace bucket_moo::cuda {

/// How an element lies in memory, its value, and the element nearest to a value, ties to even. float64 has kernels of
/// its own.
template <DType D>
struct Element;

template <>
struct Element<DType::float32> {
  using Bits = std::uint32_t;
  static constexpr std::uint32_t kMagnitude = 0x7fffffffu;  ///< a word without its signs
  static __device__ float value(Bits bits) { return __uint_as_float(bits); }
  static __device__ Bits rounded(float value) { return __float_as_uint(value); }
};

template <>
struct Element<DType::bfloat16> {
  using Bits = std::uint16_t;
  static constexpr std::uint32_t kMagnitude = 0x7fff7fffu;
  static __device__ float value(Bits bits) { return __uint_as_float(static_cast<std::uint32_t>(bits) << 16); }
  static __device__ Bits rounded(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
};

template <>
struct Element<DType::float16> {
  using Bits = std::uint16_t;
  static constexpr std::uint32_t kMagnitude = 0x7fff7fffu;
  static __device__ float value(Bits bits) { return __half2float(__ushort_as_half(bits)); }
  static __device__ Bits rounded(float value) { return __half_as_ushort(__float2half_rn(value)); }
};

template <DType D>
using Bits = typename Element<D>::Bits;

/// 16 bytes of a row, in registers.
struct Vector {
  std::uint32_t word[4] = {};
};

inline constexpr int kVectorBytes = 16;
template <DType D>
inline constexpr int kPerVector = kVectorBytes / static_cast<int>(sizeof(Bits<D>));
template <DType D>
inline constexpr int kPerWord = kPerVector<D> / 4;

/// Elements from `at` on, of a row and an index that are 16-byte aligned.
template <DType D>
__device__ Vector load_vector(const void* row, std::int64_t at) {
  const uint4 words = *reinterpret_cast<const uint4*>(static_cast<const Bits<D>*>(row) + at);
  return {{words.x, words.y, words.z, words.w}};
}

/// The same for any alignment, and with zeros from `size` on.
template <DType D>
__device__ Vector load_elements(const void* row, std::int64_t at, std::int64_t size) {
  const Bits<D>* const from = static_cast<const Bits<D>*>(row) + at;
  const std::int64_t left = size - at;
  Vector vector;
#pragma unroll
  for (int e = 0; e < kPerVector<D>; ++e) {
    const std::uint32_t bits = e < left ? from[e] : 0u;
    vector.word[e / kPerWord<D>] |= bits << (e % kPerWord<D> * 16);
  }
  return vector;
}

template <DType D>
__device__ void store_vector(void* row, std::int64_t at, const Vector& vector) {
  *reinterpret_cast<uint4*>(static_cast<Bits<D>*>(row) + at) =
      make_uint4(vector.word[0], vector.word[1], vector.word[2], vector.word[3]);
}

/// The first Count of them.
template <DType D, int Count>
__device__ void store_first(void* row, std::int64_t at, const Vector& vector) {
  if constexpr (Count == kPerVector<D>) {
    store_vector<D>(row, at, vector);
  } else {
    static_assert(Count * 2 == kPerVector<D>);
    *reinterpret_cast<uint2*>(static_cast<Bits<D>*>(row) + at) = make_uint2(vector.word[0], vector.word[1]);
  }
}

template <DType D>
__device__ Bits<D> bits_of(const Vector& vector, int e) {
  return static_cast<Bits<D>>(vector.word[e / kPerWord<D>] >> (e % kPerWord<D> * 16));
}

template <DType D, int Count = kPerVector<D>>
__device__ void store_elements(void* row, std::int64_t at, std::int64_t size, const Vector& vector) {
  Bits<D>* const to = static_cast<Bits<D>*>(row) + at;
  const std::int64_t left = size - at;
#pragma unroll
  for (int e = 0; e < Count; ++e) {
    if (e < left) to[e] = bits_of<D>(vector, e);
  }
}

template <DType D>
__device__ float value_of(const Vector& vector, int e) {
  return Element<D>::value(bits_of<D>(vector, e));
}

template <DType D>
__device__ void set_bits(Vector& vector, int e, Bits<D> bits) {
  vector.word[e / kPerWord<D>] |= static_cast<std::uint32_t>(bits) << (e % kPerWord<D> * 16);
}

/// Non-zero where one of the elements is: by their bits, so that subnormals count.
template <DType D>
__device__ std::uint32_t any_nonzero(const Vector& vector) {
  return (vector.word[0] | vector.word[1] | vector.word[2] | vector.word[3]) & Element<D>::kMagnitude;
}

/// Bytes of an element; 0 for what is no DType.
constexpr std::int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return 8;
    case DType::float32:
      return 4;
    case DType::bfloat16:
    case DType::float16:
      return 2;
  }
  return 0;
}

/// Whether the rows can be read 16 bytes at a time.
inline bool vector_aligned(const DeviceRows& rows) {
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % kVectorBytes == 0; };
  if (rows.size == 0) return true;
  if (rows.base != nullptr) return aligned(rows.base) && (rows.count <= 1 || rows.pitch % kVectorBytes == 0);
  for (int r = 0; r < rows.count; ++r) {
    if (!aligned(rows.scattered[r])) return false;
  }
  return true;
}

/// Whether these are rows that the kernels can take.
inline bool valid(const DeviceRows& rows) {
  if (rows.count < 0 || rows.size < 0 || element_bytes(rows.dtype) == 0) return false;
  if (rows.base != nullptr || rows.size == 0) return true;  // empty rows may be nowhere
  if (rows.count > kMaxObjectives) return false;
  for (int r = 0; r < rows.count; ++r) {
    if (rows.scattered[r] == nullptr) return false;
  }
  return true;
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_ELEMENTS_CUH
