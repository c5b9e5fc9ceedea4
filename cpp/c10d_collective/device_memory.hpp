// Memory on a device that is kept, and a stream beside the caller's.
#pragma once

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace bucket_moo {

/// A stream beside the caller's.
class SideStream {
 public:
  explicit SideStream(c10::Device device) : device_(device), stream_(make(device)) {
    if (device.is_cuda()) {
      ready_.emplace(device.type());
    }
  }

  c10::Stream stream() const { return stream_; }

  /// What is enqueued from now on waits for what the calling thread's current stream holds.
  void follow_current() {
    if (ready_) {
      ready_->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
      ready_->block(stream_);
    }
  }

 private:
  /// Of high priority, so that our small kernels are not queued behind the large ones of the backward pass.
  static c10::Stream make(c10::Device device) {
    const c10::impl::VirtualGuardImpl impl(device.type());
    return device.is_cuda() ? impl.getStreamFromGlobalPool(device, /*isHighPriority=*/true) : impl.getStream(device);
  }

  c10::Device device_;
  c10::Stream stream_;
  std::optional<c10::Event> ready_;
};

/// Bytes on a device that grow and are kept; once keep_all() was called nothing is let go, outgrown memory neither,
/// because a captured graph goes on using it. Torch's allocator aligns them to 64 bytes or more, and hands memory that
/// is let go only to work on the same stream, hence after what is still enqueued on it.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(c10::Device device) : device_(device) {}

  /// At least `bytes` bytes; what was in them before is lost when the memory has to grow, and is zero then.
  std::byte* reserve(std::size_t bytes) {
    if (bytes > capacity()) {
      if (keep_all_ && memory_.defined()) {
        outgrown_.push_back(memory_);
      }
      memory_.reset();  // before the new block is taken: the peak is the larger of the two, not their sum
      memory_ = at::zeros({static_cast<std::int64_t>(bytes)}, at::TensorOptions().dtype(at::kByte).device(device_));
    }
    return data();
  }

  /// The memory, if it may be let go: what is kept anyway can serve again.
  void release() {
    if (!keep_all_) {
      memory_.reset();
    }
  }

  void keep_all() { keep_all_ = true; }

  std::byte* data() const { return memory_.defined() ? static_cast<std::byte*>(memory_.mutable_data_ptr()) : nullptr; }
  at::Tensor tensor(std::size_t bytes) const { return memory_.narrow(0, 0, static_cast<std::int64_t>(bytes)); }
  /// `bytes` bytes from `part` on, which lies inside.
  at::Tensor tensor_at(const void* part, std::size_t bytes) const {
    return memory_.narrow(0, static_cast<const std::byte*>(part) - data(), static_cast<std::int64_t>(bytes));
  }
  std::size_t capacity() const { return memory_.defined() ? memory_.nbytes() : 0; }

 private:
  c10::Device device_;
  at::Tensor memory_;
  bool keep_all_ = false;
  std::vector<at::Tensor> outgrown_;
};

}  // namespace bucket_moo
