// What a handler is given by the device that it is called for: a stream, and memory while the stream's work lasts.
//
// Over emulated kernels it is the CPU that XLA calls for, which has neither: the stream is the emulation's default one,
// whose work is done when it is asked for, and memory is the host's.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "copy_from_host.cuh"
#include "device.cuh"
#include "jax/buffers.hpp"
#include "numbers.cuh"
#include "rows.cuh"
#include "shares.cuh"

/// The symbol of a device's handler. Over emulated kernels it takes the place of the CPU's own.
#if BUCKET_MOO_EMULATED_CUDA
#define BUCKET_MOO_JAX_DEVICE_HANDLER(name) bucket_moo_jax_##name
#else
#define BUCKET_MOO_JAX_DEVICE_HANDLER(name) bucket_moo_jax_cuda_##name
#endif

namespace bucket_moo::jax {

/// Throws std::runtime_error for what a CUDA call says.
inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(message("bucket_moo_ext: ", what, " failed: ", cudaGetErrorString(status)));
  }
}

#if BUCKET_MOO_EMULATED_CUDA
/// Memory of the host, which starts as NaN.
class Scratch {
 public:
  std::optional<void*> Allocate(std::size_t bytes, std::size_t) {
    constexpr std::size_t kSize = sizeof(Unit);
    blocks_.emplace_back((bytes + kSize - 1) / kSize, Unit{~std::uint64_t{0}, ~std::uint64_t{0}});
    return blocks_.back().data();
  }

 private:
  struct alignas(16) Unit {
    std::uint64_t low, high;
  };
  std::vector<std::vector<Unit>> blocks_;
};
#else
using Scratch = ffi::ScratchAllocator;
#endif

/// The device of a call. What is enqueued may still run when the call is over; memory that goes back to XLA then is
/// given to work of the same stream alone.
class Device {
 public:
  Device(cudaStream_t stream, int ordinal, Scratch scratch)
      : stream_(stream), ordinal_(ordinal), scratch_(std::move(scratch)) {}

  cudaStream_t stream() const { return stream_; }
  int ordinal() const { return ordinal_; }

  /// Memory for `count` values, 16-byte aligned, not initialised; nullptr for none. Throws std::runtime_error where
  /// there is none left.
  template <class Value>
  Value* scratch(std::int64_t count) {
    if (count == 0) return nullptr;
    constexpr std::size_t kAlignment = 16;
    const std::optional<void*> memory = scratch_.Allocate(static_cast<std::size_t>(count) * sizeof(Value), kAlignment);
    if (!memory.has_value()) {
      throw std::runtime_error(
          message("bucket_moo_ext: no device memory for ", count * std::int64_t{sizeof(Value)}, " bytes of workspace"));
    }
    return static_cast<Value*>(*memory);
  }

  /// A copy of values in device memory.
  template <class Value>
  Value* stored(const std::vector<Value>& values) {
    Value* const copy = scratch<Value>(static_cast<std::int64_t>(values.size()));
    check_cuda(cuda::launch_copy_from_host(values.data(), values.size() * sizeof(Value), copy, stream_),
               "storing values");
    return copy;
  }

 private:
  cudaStream_t stream_;
  int ordinal_;
  Scratch scratch_;
};

/// Makes the device current for its scope. XLA does not do so before it calls a handler, and our CUDA runtime is linked
/// statically, beside the one that XLA uses.
class CurrentDevice {
 public:
  explicit CurrentDevice(const Device& device) {
    check_cuda(cudaGetDevice(&previous_), "asking for the current device");
    check_cuda(cuda::use_device(device.ordinal()), "choosing the device");
  }
  ~CurrentDevice() { cuda::use_device(previous_); }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int previous_ = 0;
};

/// Calls the function with its device current; what it throws becomes XLA's error.
template <class Function>
ffi::Error enqueued(const Device& device, const Function& function) noexcept {
  return guarded([&] {
    const CurrentDevice current(device);
    function();
  });
}

/// A number as the launchers take it.
inline int as_int(std::int64_t number, const char* what) {
  require(number <= std::numeric_limits<int>::max(), what, " must be at most ", std::numeric_limits<int>::max(),
          " on a GPU; got ", number);
  return static_cast<int>(number);
}

/// XLA aligns its buffers to more than any number; this is for those that are a piece of one.
inline void check_aligned(const void* data, std::size_t bytes) {
  require(reinterpret_cast<std::uintptr_t>(data) % bytes == 0, "a buffer is not aligned to ", bytes, " bytes");
}

/// Pairs of uint32 are the bytes of float64: words and hosts are little-endian.
inline cuda::Numbers numbers_of(const Doubles& doubles) {
  check_aligned(doubles.data(), doubles.is_float32() ? sizeof(float) : sizeof(double));
  return {doubles.data(), doubles.is_float32()};
}

/// The keys of problems, [batch]: as check_keys() wants them they are RandomKeys, byte by byte.
inline const RandomKey* keys_of(ffi::AnyBuffer keys) {
  static_assert(sizeof(RandomKey) == 6 * sizeof(std::uint32_t));
  check_aligned(keys.untyped_data(), alignof(RandomKey));
  return static_cast<const RandomKey*>(keys.untyped_data());
}

/// The rows of one problem.
inline cuda::DeviceRows device_rows(const RowsOf& rows, std::int64_t problem) {
  cuda::DeviceRows device;
  device.base = rows.row(problem, 0);
  device.pitch = rows.size() * static_cast<std::int64_t>(element_size(rows.dtype()));
  device.count = as_int(rows.count(), "rows");
  device.size = rows.size();
  device.dtype = rows.dtype();
  return device;
}

/// Which objective each row is of, in device memory.
inline cuda::RowObjectives row_objectives(Device& device, const std::vector<int>& objective, std::int64_t k,
                                          std::int64_t batch) {
  return {device.stored(objective), as_int(static_cast<std::int64_t>(objective.size()), "rows"), static_cast<int>(k),
          as_int(batch, "the batch")};
}

}  // namespace bucket_moo::jax

/// As Ffi::Bind().Ctx<Device>() wants it.
template <>
struct xla::ffi::CtxDecoding<bucket_moo::jax::Device> {
  using Type = bucket_moo::jax::Device;

#if BUCKET_MOO_EMULATED_CUDA
  static std::optional<Type> Decode(const XLA_FFI_Api*, XLA_FFI_ExecutionContext*, DiagnosticEngine&) {
    return Type(nullptr, 0, {});
  }
#else
  static std::optional<Type> Decode(const XLA_FFI_Api* api, XLA_FFI_ExecutionContext* context,
                                    DiagnosticEngine& diagnostic) {
    const auto stream = CtxDecoding<PlatformStream<cudaStream_t>>::Decode(api, context, diagnostic);
    const auto ordinal = CtxDecoding<DeviceOrdinal>::Decode(api, context, diagnostic);
    auto scratch = CtxDecoding<ScratchAllocator>::Decode(api, context, diagnostic);
    if (!stream.has_value() || !ordinal.has_value() || !scratch.has_value()) return std::nullopt;
    return Type(*stream, *ordinal, std::move(*scratch));
  }
#endif
};
