#include "c10d_collective/device_results.hpp"

#include <ATen/Functions.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "bucket_moo/lanes.hpp"
#include "bucket_moo/state_layout.hpp"
#include "c10d_collective/device_step.hpp"

namespace bucket_moo {
namespace {

constexpr std::int64_t doubles(std::size_t bytes) {
  return static_cast<std::int64_t>((bytes + sizeof(double) - 1) / sizeof(double));
}

constexpr std::int64_t kSolutionAt = doubles(sizeof(StepHeader));
constexpr std::int64_t kGramianAt = kSolutionAt + doubles(sizeof(Solution));

template <class T>
T read_as(const double* memory) {
  std::array<std::byte, sizeof(T)> bytes;
  std::memcpy(bytes.data(), memory, sizeof(T));
  return std::bit_cast<T>(bytes);
}

at::Tensor zeros(std::int64_t count, c10::Device device) {
  return at::zeros({count}, at::TensorOptions().dtype(at::kDouble).device(device));
}

std::size_t values_size(const Method& method) { return state_size(method, kMaxRememberedNames); }

}  // namespace

DeviceResult::DeviceResult(c10::Device device, int k_bound)
    : k_bound_(k_bound), memory_(zeros(kGramianAt + std::int64_t{k_bound} * (k_bound + 1), device)) {}

cuda::BucketResult DeviceResult::pointers() const {
  double* const memory = memory_.mutable_data_ptr<double>();
  return {.header = reinterpret_cast<StepHeader*>(memory),
          .solution = reinterpret_cast<Solution*>(memory + kSolutionAt),
          .gramian = memory + kGramianAt,
          .weights = memory + kGramianAt + std::int64_t{k_bound_} * k_bound_};
}

std::pair<StepHeader, BucketSolution> DeviceResult::read() const {
  const at::Tensor host = memory_.cpu();
  const double* const memory = host.const_data_ptr<double>();
  const auto header = read_as<StepHeader>(memory);
  BucketSolution bucket;
  bucket.solution = read_as<Solution>(memory + kSolutionAt);
  const double* const weights = memory + kGramianAt + std::int64_t{k_bound_} * k_bound_;
  bucket.gramian.assign(memory + kGramianAt, memory + kGramianAt + std::int64_t{header.k} * header.k);
  bucket.weights.assign(weights, weights + header.k);
  return {header, bucket};
}

DeviceSolverState::DeviceSolverState(const Method& method, c10::Device device)
    : DeviceSolverState(method, zeros(static_cast<std::int64_t>(values_size(method)) + kMaxRememberedNames, device)) {}

DeviceSolverState::DeviceSolverState(const Method& method, at::Tensor memory)
    : method_(method), memory_(std::move(memory)) {}

DeviceSolverState DeviceSolverState::clone() const { return {method_, memory_.clone()}; }

std::pair<std::vector<int>, std::vector<double>> DeviceSolverState::read() const {
  const at::Tensor host = memory_.cpu();
  const double* const values = host.const_data_ptr<double>();
  const double* const met = values + values_size(method_);
  std::vector<int> slots;
  for (int slot = 0; slot < kMaxRememberedNames; ++slot) {
    if (met[slot] != 0.0) {
      slots.push_back(slot);
    }
  }
  const int count = static_cast<int>(slots.size());
  std::vector<double> packed(state_size(method_, count));
  copy_state(HostLanes{}, method_, count, {values, kMaxRememberedNames, slots.data()}, {packed.data(), count, nullptr});
  return {slots, packed};
}

void DeviceSolverState::write(const std::vector<int>& slots, const std::vector<double>& values) const {
  const at::Tensor host = at::zeros_like(memory_, memory_.options().device(at::kCPU));
  double* const memory = host.mutable_data_ptr<double>();
  const int count = static_cast<int>(slots.size());
  copy_state(HostLanes{}, method_, count, {values.data(), count, nullptr}, {memory, kMaxRememberedNames, slots.data()});
  for (const int slot : slots) {
    memory[values_size(method_) + static_cast<std::size_t>(slot)] = 1.0;
  }
  memory_.copy_(host);
}

}  // namespace bucket_moo
