// How things of different types share one block of memory.
#pragma once

#include <cstddef>

namespace bucket_moo {

/// The smallest multiple of `to` that is at least `bytes`.
constexpr std::size_t round_up(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

/// What kernels' vector loads want of an address.
inline constexpr std::size_t kKernelAlignment = 16;

/// Hands out parts of a block of memory, front to back; without memory it counts how much is needed.
class MemoryLayout {
 public:
  explicit MemoryLayout(std::byte* memory) : memory_(memory) {}

  template <class T>
  T* take(std::size_t count) {
    T* const part = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += round_up(count * sizeof(T), kKernelAlignment);
    return part;
  }

  /// Bytes taken so far.
  std::size_t used() const { return used_; }

 private:
  std::byte* memory_;
  std::size_t used_ = 0;
};

}  // namespace bucket_moo
