// What a device path keeps for each bucket, in device memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <utility>
#include <vector>

#include "bucket_moo/method.hpp"
#include "bucket_moo/objective_table.hpp"
#include "collective/moo_collective.hpp"
#include "solve.cuh"

namespace bucket_moo {

/// What was solved for a bucket; every reduction that is given it writes it anew.
class DeviceResult {
 public:
  /// For at most `k_bound` objectives.
  DeviceResult(c10::Device device, int k_bound);

  cuda::BucketResult pointers() const;

  /// Waits for what is enqueued on the current stream.
  std::pair<StepHeader, BucketSolution> read() const;

 private:
  int k_bound_;
  at::Tensor memory_;  // float64: header, solution, gramian, weights
};

/// What a method carries from step to step for a bucket: for every name of the registry, in solve()'s layout, and for
/// each whether the bucket has met it.
class DeviceSolverState {
 public:
  /// Fresh.
  DeviceSolverState(const Method& method, c10::Device device);

  double* data() const { return memory_.mutable_data_ptr<double>(); }

  /// Enqueues the copy on the current stream.
  DeviceSolverState clone() const;

  /// The numbers of the names met, and their state in solve()'s layout. Waits for the current stream.
  std::pair<std::vector<int>, std::vector<double>> read() const;
  void write(const std::vector<int>& slots, const std::vector<double>& values) const;

 private:
  DeviceSolverState(const Method& method, at::Tensor memory);

  Method method_;  // which says how the memory is laid out; its pointers are not used
  at::Tensor memory_;
};

}  // namespace bucket_moo
