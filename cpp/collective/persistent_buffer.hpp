// Memory that grows and is kept.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace bucket_moo {

/// Uninitialised bytes aligned to a cache line. Kept between buckets: touching fresh pages for every bucket costs more
/// than the arithmetic does.
class PersistentBuffer {
 public:
  static constexpr std::size_t kAlignment = 64;

  /// At least `bytes` bytes; what was in them before is lost when the memory has to grow.
  std::byte* reserve(std::size_t bytes) {
    if (bytes > capacity_) {
      memory_.reset();  // before the new block is taken: the peak is the larger of the two, not their sum
      memory_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kAlignment})));
      capacity_ = bytes;
    }
    return memory_.get();
  }

  std::byte* data() const { return memory_.get(); }
  std::size_t capacity() const { return capacity_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, std::align_val_t{kAlignment}); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t capacity_ = 0;
};

}  // namespace bucket_moo
