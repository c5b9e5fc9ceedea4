// What kernel source needs of the CUDA language, on the CPU. Only for files whose kernels run under the emulation; see
// emulation.hpp on how.
#ifndef BUCKET_MOO_EMULATION_CUDA_RUNTIME_H
#define BUCKET_MOO_EMULATION_CUDA_RUNTIME_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#include "cuda_runtime_api.h"

// ---- vectors -------------------------------------------------------------------------------------------------------

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- launches ------------------------------------------------------------------------------------------------------

struct cudaLaunchAttribute {};
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace bucket_moo::emulation {

/// Counts a launch of the kernel at this address, for bucket_moo_emulated_launches().
void count_launch(const void* kernel);

/// Enqueues a grid. \param kernel identifies it; \param body runs a thread of it, and owns the arguments
cudaError_t launch_grid(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> body);

cudaError_t set_shared_limit(const void* kernel, int bytes);
cudaError_t occupancy(int* blocks, const void* kernel, int threads, std::size_t shared);

/// What a lane does when it waits; all lanes of a warp must come to the same one.
enum class Wait : int { none, warp_sync, shuffle, ballot, reduce_or, block_sync, block_or, done };

/// Returns when all lanes of the warp have called it with the same `wait`. `mine` is then what lane l gave, at [l];
/// valid until the next call.
const std::uint64_t* exchange(Wait wait, unsigned mask, std::uint64_t mine);

/// Returns when all threads of the block have called it.
/// \return the inclusive or of their `mine`
int block_barrier(Wait wait, int mine);

void threadfence_system();

/// Of the running thread.
void threadfence();

template <class Kernel>
const void* identity(Kernel* kernel) {
  return reinterpret_cast<const void*>(kernel);
}

}  // namespace bucket_moo::emulation

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "the parameters of a kernel have room for 4 kB");
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "parameters are copied as bytes");
  const std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  bucket_moo::emulation::count_launch(bucket_moo::emulation::identity(kernel));
  return bucket_moo::emulation::launch_grid(*config, bucket_moo::emulation::identity(kernel),
                                            [kernel, values] { std::apply(kernel, values); });
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int value) {
  return bucket_moo::emulation::set_shared_limit(bucket_moo::emulation::identity(kernel), value);
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel* kernel, int threads,
                                                          std::size_t shared) {
  return bucket_moo::emulation::occupancy(blocks, bucket_moo::emulation::identity(kernel), threads, shared);
}

// ---- inside a kernel -----------------------------------------------------------------------------------------------

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

inline void __syncthreads() { bucket_moo::emulation::block_barrier(bucket_moo::emulation::Wait::block_sync, 0); }
inline int __syncthreads_or(int predicate) {
  return bucket_moo::emulation::block_barrier(bucket_moo::emulation::Wait::block_or, predicate != 0 ? 1 : 0);
}
inline void __threadfence_system() { bucket_moo::emulation::threadfence_system(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  bucket_moo::emulation::exchange(bucket_moo::emulation::Wait::warp_sync, mask, 0);
}

template <class T>
T bucket_moo_emulated_shuffle(unsigned mask, T value, int from) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const std::uint64_t* const all = bucket_moo::emulation::exchange(bucket_moo::emulation::Wait::shuffle, mask, bits);
  T result;
  std::memcpy(&result, all + (from & 31), sizeof(T));
  return result;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return bucket_moo_emulated_shuffle(mask, value, static_cast<int>(threadIdx.x & 31u) ^ bits);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return bucket_moo_emulated_shuffle(mask, value, lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const std::uint64_t* const all =
      bucket_moo::emulation::exchange(bucket_moo::emulation::Wait::ballot, mask, predicate != 0 ? 1 : 0);
  unsigned result = 0;
  for (int l = 0; l < 32; ++l) result |= static_cast<unsigned>(all[l]) << l;
  return result;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  const std::uint64_t* const all = bucket_moo::emulation::exchange(bucket_moo::emulation::Wait::reduce_or, mask, value);
  unsigned result = 0;
  for (int l = 0; l < 32; ++l) result |= static_cast<unsigned>(all[l]);
  return result;
}
inline std::size_t __cvta_generic_to_shared(const void* pointer) { return reinterpret_cast<std::size_t>(pointer); }
inline void* __cvta_shared_to_generic(std::size_t address) { return reinterpret_cast<void*>(address); }
inline void __threadfence() { bucket_moo::emulation::threadfence(); }
// Threads run one at a time. Atomic operations for what watches them.
template <class T>
T atomicAdd(T* address, T value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline unsigned atomicInc(unsigned* address, unsigned most) {
  const unsigned old = __atomic_load_n(address, __ATOMIC_RELAXED);
  __atomic_store_n(address, old >= most ? 0 : old + 1, __ATOMIC_RELAXED);
  return old;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  const std::uint64_t both = static_cast<std::uint64_t>(high) << 32 | low;
  return static_cast<unsigned>(both << (shift & 31u) >> 32);
}
inline int __ffs(int x) { return __builtin_ffs(x); }

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline long long __double_as_longlong(double value) {
  long long bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline double __hiloint2double(int high, int low) {
  const std::uint64_t bits = static_cast<std::uint64_t>(static_cast<unsigned>(high)) << 32 | static_cast<unsigned>(low);
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// ---- words of the language -----------------------------------------------------------------------------------------
// Last, for the standard library's headers use some of them too.

#define __host__
#define __device__
#define __global__
#define __shared__
#define __grid_constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

#endif  // BUCKET_MOO_EMULATION_CUDA_RUNTIME_H
