// Allocation, copies and fills, with their arguments checked as CUDA checks them.
#include <atomic>
#include <cstdint>
#include <cstring>

#include "emulation.hpp"
#include "memory.hpp"
#include "streams.hpp"

namespace emulation = bucket_moo::emulation;
using emulation::count;
using emulation::Known;
using emulation::look_up;
using emulation::Operations;
using emulation::Place;
using emulation::Range;

namespace bucket_moo::emulation {
namespace {

std::atomic<std::size_t> max_pitch = 0x7fffffff;  // cudaDeviceProp::memPitch

/// A rectangle of bytes; one row of any pitch for a plain copy.
struct Rows {
  std::byte* begin;
  std::size_t pitch;
};

bool overlap(const std::byte* a, const std::byte* b, std::size_t bytes) { return a < b + bytes && b < a + bytes; }

/// What a side of a copy may be. Memory that is not known here is the host's, or a test's that knows both are one.
cudaError_t check_side(Range side, bool is_device) {
  switch (look_up(side)) {
    case Known::no:
      return cudaSuccess;
    case Known::device:
      return is_device ? cudaSuccess : cudaErrorInvalidMemcpyDirection;
    case Known::pinned:
      return is_device ? cudaErrorInvalidMemcpyDirection : cudaSuccess;
    case Known::beyond:
      return cudaErrorInvalidValue;
  }
  return cudaErrorInvalidValue;
}

cudaError_t copy(Rows to, Rows from, std::size_t width, std::size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
  if (width == 0 || height == 0) return cudaSuccess;
  if (to.begin == nullptr || from.begin == nullptr) return cudaErrorInvalidValue;
  Task task{.name = "copy", .kind = &Operations::copies, .run = {}};
  for (std::size_t row = 0; row < height; ++row) {
    task.reads.push_back({from.begin + row * from.pitch, width});
    task.writes.push_back({to.begin + row * to.pitch, width});
    if (kind != cudaMemcpyDefault) {
      const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
      const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
      for (const cudaError_t status :
           {check_side(task.writes.back(), to_device), check_side(task.reads.back(), from_device)}) {
        if (status != cudaSuccess) return status;
      }
    }
    if (overlap(to.begin + row * to.pitch, from.begin + row * from.pitch, width)) fault("a copy onto itself");
  }
  task.run = [=] {
    for (std::size_t row = 0; row < height; ++row) {
      std::memmove(to.begin + row * to.pitch, from.begin + row * from.pitch, width);
    }
    return cudaSuccess;
  };
  const cudaError_t status = enqueue(stream, task);
  // What comes out into memory that is not pinned has arrived when the call returns.
  if (status == cudaSuccess && kind == cudaMemcpyDeviceToHost && look_up(task.writes[0]) == Known::no &&
      look_up(task.reads[0]) == Known::device) {
    return cudaStreamSynchronize(stream);
  }
  return status;
}

}  // namespace

void set_max_pitch(std::size_t bytes) { max_pitch = bytes; }

}  // namespace bucket_moo::emulation

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  if (pointer == nullptr) return cudaErrorInvalidValue;
  count(&Operations::allocations);
  const cudaError_t status = emulation::not_beside_captures();
  if (status != cudaSuccess) return status;
  *pointer = bytes == 0 ? nullptr : emulation::allocate(Place::device, bytes, nullptr);
  return bytes > 0 && *pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaHostAlloc(void** pointer, std::size_t bytes, unsigned flags) {
  if (pointer == nullptr || flags > 7) return cudaErrorInvalidValue;
  count(&Operations::allocations);
  const cudaError_t status = emulation::not_beside_captures();
  if (status != cudaSuccess) return status;
  *pointer = bytes == 0 ? nullptr : emulation::allocate(Place::pinned, bytes, nullptr);
  return bytes > 0 && *pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

/// Waits for everything first, as CUDA does.
static cudaError_t free_in(Place place, void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  count(&Operations::allocations);
  const std::lock_guard lock(emulation::runtime_mutex());
  const cudaError_t status = emulation::not_beside_captures();
  if (status != cudaSuccess) return status;
  emulation::wait_for_device();
  return emulation::release(place, pointer, nullptr) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaFree(void* pointer) { return free_in(Place::device, pointer); }

cudaError_t cudaFreeHost(void* pointer) { return free_in(Place::pinned, pointer); }

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags) {
  if (device == nullptr || flags != 0 || look_up({host, 1}) != Known::pinned) return cudaErrorInvalidValue;
  *device = host;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  auto* const source = static_cast<std::byte*>(const_cast<void*>(from));
  return emulation::copy({static_cast<std::byte*>(to), 0}, {source, 0}, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t status = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  return status == cudaSuccess ? cudaStreamSynchronize(nullptr) : status;
}

cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  const std::size_t most = emulation::max_pitch;
  if (to_pitch > most || from_pitch > most || width > to_pitch || width > from_pitch) return cudaErrorInvalidPitchValue;
  auto* const source = static_cast<std::byte*>(const_cast<void*>(from));
  return emulation::copy({static_cast<std::byte*>(to), to_pitch}, {source, from_pitch}, width, height, kind, stream);
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (to == nullptr) return cudaErrorInvalidValue;
  if (look_up({to, bytes}) == Known::beyond) return cudaErrorInvalidValue;
  return emulation::enqueue(stream,
                            {.name = "memset", .kind = &Operations::memsets, .writes = {{to, bytes}}, .run = [=] {
                               std::memset(to, value, bytes);
                               return cudaSuccess;
                             }});
}

cudaError_t cudaMemset(void* to, int value, std::size_t bytes) { return cudaMemsetAsync(to, value, bytes, nullptr); }
