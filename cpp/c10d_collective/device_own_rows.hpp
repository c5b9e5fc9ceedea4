// The rows of a bucket that stay on their rank while its step goes on, in device memory.
#pragma once

#include <c10/core/Device.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bucket_moo/limits.hpp"
#include "bucket_moo/objective_table.hpp"
#include "c10d_collective/device_memory.hpp"
#include "kernels/rows.hpp"
#include "own_rows.cuh"
#include "rows.cuh"

namespace bucket_moo {

/// OwnRows' counterpart: a sum for each objective that this rank has had, in the order in which it had them, or one sum
/// of all rows. Which number an objective has in the step, and the unit of its sum, only the device knows. Memory is
/// kept from step to step, that of either kind until there is need of the other.
class DeviceOwnRows {
 public:
  explicit DeviceOwnRows(c10::Device device) : device_(device), one_(device), facts_(device) {}

  /// Empties it, for a bucket of n elements.
  void begin(std::int64_t n, DType dtype, bool in_one_sum);
  bool fits(std::int64_t n, DType dtype) const { return n_ == n && dtype_ == dtype; }

  /// Where the next row is added, with pass and weight still to be set. `objective`: the row's, without which the row
  /// itself is its sum; not looked at in one sum.
  struct Place {
    void* sum;
    cuda::OwnRow row;
  };
  Place add(const ObjectiveName& objective);
  Place take_as_it_is();

  bool in_one_sum() const { return in_one_sum_; }
  /// The sums so far.
  cuda::DeviceRows sums() const;
  /// [count of sums]: for cuda::WeightedSums; nullptr in one sum.
  const int* numbers() const { return in_one_sum_ ? nullptr : facts()->number; }
  const double* units() const { return in_one_sum_ ? nullptr : facts()->unit; }

  std::size_t capacity() const;

 private:
  /// What facts_ holds.
  struct Facts {
    double unit[kMaxObjectives];
    int number[kMaxObjectives];
    cuda::OwnAddition addition;
  };

  Facts* facts() const { return reinterpret_cast<Facts*>(facts_.data()); }
  std::size_t place_of(const ObjectiveName& objective);

  c10::Device device_;
  std::vector<ObjectiveName> names_;  // of this rank's objectives in the step
  std::vector<DeviceBuffer> sums_;
  DeviceBuffer one_;
  DeviceBuffer facts_;
  bool in_one_sum_ = false;
  bool any_ = false;  // whether something was added to the one sum
  std::int64_t n_ = 0;
  DType dtype_ = DType::float32;  // of the rows
};

}  // namespace bucket_moo
