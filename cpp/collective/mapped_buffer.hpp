// Memory that goes back to the system when it is let go.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <memory>
#include <new>

namespace bucket_moo {

/// Pages of their own. What is let go and taken again in every step must not stay with an allocator: malloc keeps what
/// is in the middle of a heap, and has a heap for each thread.
class MappedBuffer {
 public:
  /// At least `bytes` > 0 bytes; what was in them before is lost when the memory has to grow.
  std::byte* reserve(std::size_t bytes) {
    if (bytes > capacity()) {
      release();
      void* const pages = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (pages == MAP_FAILED) {
        throw std::bad_alloc();
      }
      memory_ = {static_cast<std::byte*>(pages), Unmap{bytes}};
    }
    return data();
  }

  void release() { memory_.reset(); }

  std::byte* data() const { return memory_.get(); }
  std::size_t capacity() const { return memory_ ? memory_.get_deleter().bytes : 0; }

 private:
  struct Unmap {
    std::size_t bytes;  // of what there is, if there is any
    void operator()(std::byte* memory) const { ::munmap(memory, bytes); }
  };
  std::unique_ptr<std::byte, Unmap> memory_;
};

}  // namespace bucket_moo
