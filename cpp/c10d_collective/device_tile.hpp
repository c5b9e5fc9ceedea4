// The sums of a bucket's rows by objective, on a device, while its step goes on.
#pragma once

#include <c10/core/Device.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "bucket_moo/limits.hpp"
#include "c10d_collective/device_memory.hpp"
#include "collective/memory_layout.hpp"
#include "kernels/accumulate.hpp"
#include "kernels/rows.hpp"
#include "rows.cuh"

namespace bucket_moo {

/// ObjectiveTile's counterpart: which sums count, and in which unit, only the device knows. Memory grows with the
/// objectives that there is room for and is kept from step to step; what was added stays where it is.
class DeviceTile {
 public:
  explicit DeviceTile(c10::Device device) : device_(device), units_(device) {}

  /// Empties it, for a bucket of these sizes and this type.
  void begin(std::int64_t shard_size, std::int64_t tail_size, DType dtype) {
    shard_size_ = shard_size;
    tail_size_ = tail_size;
    dtype_ = accumulation_dtype(dtype);
    is_fresh_ = true;
  }
  /// Whether it was begun for a bucket like this one.
  bool fits(std::int64_t shard_size, std::int64_t tail_size, DType dtype) const {
    return shard_size_ == shard_size && tail_size_ == tail_size && dtype_ == accumulation_dtype(dtype);
  }

  /// Room for so many objectives.
  void reserve(int objectives) {
    while (sums_.size() < static_cast<std::size_t>(objectives)) {
      sums_.emplace_back(device_);
    }
    for (DeviceBuffer& sum : sums_) {
      sum.reserve(tail_offset() + static_cast<std::size_t>(tail_size_) * element_size(dtype_));
    }
    units_.reserve(kMaxObjectives * sizeof(double));
  }

  int objectives() const { return static_cast<int>(sums_.size()); }
  /// [kMaxObjectives], device: cuda::launch_begin_addition().
  double* units() const { return reinterpret_cast<double*>(units_.data()); }
  /// Whether nothing was added since begin(); from now on something is.
  bool begin_addition() { return std::exchange(is_fresh_, false); }

  /// Elements [begin, begin + size) of the shards' sums, or of the tails', as rows.
  cuda::DeviceRows shard(std::int64_t begin, std::int64_t size) const {
    return rows_at(static_cast<std::size_t>(begin) * element_size(dtype_), size);
  }
  cuda::DeviceRows tail() const { return rows_at(tail_offset(), tail_size_); }

  std::size_t capacity() const {
    std::size_t bytes = units_.capacity();
    for (const DeviceBuffer& sum : sums_) {
      bytes += sum.capacity();
    }
    return bytes;
  }

 private:
  cuda::DeviceRows rows_at(std::size_t offset, std::int64_t size) const {
    cuda::DeviceRows rows;
    rows.count = objectives();
    rows.size = size;
    rows.dtype = dtype_;
    for (std::size_t k = 0; k < sums_.size(); ++k) {
      rows.scattered[k] = sums_[k].data() + offset;
    }
    return rows;
  }
  std::size_t tail_offset() const {
    return round_up(static_cast<std::size_t>(shard_size_) * element_size(dtype_), kKernelAlignment);
  }

  c10::Device device_;
  std::vector<DeviceBuffer> sums_;
  DeviceBuffer units_;
  std::int64_t shard_size_ = 0;
  std::int64_t tail_size_ = 0;
  DType dtype_ = DType::float32;  // of the sums
  bool is_fresh_ = true;
};

}  // namespace bucket_moo
