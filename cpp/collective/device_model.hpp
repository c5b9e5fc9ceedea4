// The Gramians of a step's buckets, for one problem of all of them.
#pragma once

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "torch_types/device.hpp"

namespace bucket_moo {

/// Messages that begin with a packed Gramian, side by side in device memory, so that a solve can add them up. Memory is
/// kept from step to step; the first steps, which do not know how many there will be, copy it as it grows.
class DeviceModel {
 public:
  explicit DeviceModel(c10::Device device) : device_(device) {}

  /// Forgets those of the step before. `bytes`: of a message.
  void begin(std::size_t bytes) {
    bytes_ = static_cast<std::int64_t>(bytes);
    count_ = 0;
  }

  /// Adds `count` messages, whose contents are to be written: bytes, on the device.
  at::Tensor append(int count) {
    const std::int64_t used = count_ * bytes_;
    const std::int64_t needed = used + count * bytes_;
    if (!memory_.defined() || needed > memory_.numel()) {
      const at::Tensor grown =
          at::zeros({std::max(needed, 2 * used)}, at::TensorOptions().dtype(at::kByte).device(device_));
      if (used > 0) {
        check_cuda(cudaMemcpyAsync(grown.mutable_data_ptr(), memory_.const_data_ptr(), static_cast<std::size_t>(used),
                                   cudaMemcpyDeviceToDevice, current_stream(device_)),
                   "enqueueing the copy of Gramians");
      }
      memory_ = grown;
    }
    count_ += count;
    return memory_.narrow(0, used, count * bytes_);
  }

  const std::byte* messages() const { return static_cast<const std::byte*>(memory_.const_data_ptr()); }
  std::int64_t pitch() const { return bytes_; }
  int count() const { return static_cast<int>(count_); }
  std::size_t capacity() const { return memory_.defined() ? memory_.nbytes() : 0; }

 private:
  c10::Device device_;
  at::Tensor memory_;
  std::int64_t bytes_ = 0;
  std::int64_t count_ = 0;
};

}  // namespace bucket_moo
