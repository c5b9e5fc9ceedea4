// Batches of problems to the kernels and back, on the CPU: against loops.
#include <bucket_moo/packed_triangle.hpp>
#include <bucket_moo/solution.hpp>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "batches.cuh"
#include "checks.hpp"

namespace {

using bucket_moo::cuda::Numbers;

/// Numbers in either precision, which float32 holds without rounding unless told otherwise.
class Array {
 public:
  Array(std::size_t count, bool single, double first = 0.0) : single_(single), narrow_(count), wide_(count) {
    for (std::size_t i = 0; i < count; ++i) numbers().set(static_cast<std::int64_t>(i), first + static_cast<double>(i));
  }
  Numbers numbers() { return single_ ? Numbers{narrow_.data(), true} : Numbers{wide_.data(), false}; }
  double operator[](std::size_t i) const { return single_ ? static_cast<double>(narrow_[i]) : wide_[i]; }

 private:
  bool single_;
  std::vector<float> narrow_;
  std::vector<double> wide_;
};

void numbers_are_converted(bool from, bool to) {
  Array given(1000, from);
  Array out(1001, to, -7.0);
  CHECK(bucket_moo::cuda::launch_convert(given.numbers(), 1000, out.numbers(), nullptr) == cudaSuccess);
  for (std::size_t i = 0; i < 1000; ++i) CHECK(out[i] == static_cast<double>(i));
  CHECK(out[1000] == 993.0);  // not written
}

void triangles_become_matrices(bool single) {
  for (const int k : {1, 2, 5, 64}) {
    const auto size = static_cast<std::size_t>(k);
    const auto packed_size = static_cast<std::size_t>(bucket_moo::packed_size(k));
    std::vector<double> packed(3 * packed_size);
    for (std::size_t i = 0; i < packed.size(); ++i) packed[i] = static_cast<double>(i);
    Array full(3 * size * size, single);
    CHECK(bucket_moo::cuda::launch_unpack_gramians(packed.data(), 3, k, full.numbers(), nullptr) == cudaSuccess);
    for (std::size_t b = 0; b < 3; ++b) {
      for (int i = 0; i < k; ++i) {
        for (int j = 0; j <= i; ++j) {
          const double entry = packed[b * packed_size + static_cast<std::size_t>(bucket_moo::packed_index(i, j))];
          CHECK(full[(b * size + static_cast<std::size_t>(i)) * size + static_cast<std::size_t>(j)] == entry);
          CHECK(full[(b * size + static_cast<std::size_t>(j)) * size + static_cast<std::size_t>(i)] == entry);
        }
      }
    }
  }
}

void parts_are_added_in_their_order(bool single) {
  constexpr std::size_t kSize = 9;
  for (const std::size_t count : {std::size_t{1}, std::size_t{4}}) {
    Array parts(2 * count * kSize, false);
    for (std::size_t i = 0; i < 2 * count * kSize; ++i) {
      parts.numbers().set(static_cast<std::int64_t>(i), 1.0 / (3.0 + static_cast<double>(i)));
    }
    std::vector<double> sum(2 * kSize);
    Array rounded(2 * kSize, single);
    CHECK(bucket_moo::cuda::launch_add_parts(parts.numbers(), 2, static_cast<int>(count), kSize, sum.data(),
                                             rounded.numbers(), nullptr) == cudaSuccess);
    for (std::size_t at = 0; at < 2 * kSize; ++at) {
      const std::size_t first = at / kSize * count * kSize + at % kSize;
      double expected = parts[first];
      for (std::size_t p = 1; p < count; ++p) expected += parts[first + p * kSize];
      CHECK(sum[at] == expected);
      CHECK(rounded[at] == (single ? static_cast<double>(static_cast<float>(expected)) : expected));
    }
  }
}

void rows_get_their_objectives_weights(bool single) {
  const std::vector<int> objective{0, 1, 0, 2, 1};
  const bucket_moo::cuda::RowObjectives rows{objective.data(), 5, 3, 2};
  const std::vector<double> weights{1.0, 2.0, 3.0, 4.0, 5.0, 6.0};
  std::vector<bucket_moo::Solution> solutions(2);
  solutions[1].status = bucket_moo::Status::nonfinite;
  solutions[1].iterations = 17;
  solutions[1].residual = 0.5;
  Array shares(10, single);
  Array coefficients(10, false);
  Array found(6, single);
  Array residual(2, single);
  std::int32_t status[2] = {-7, -7};
  std::int32_t iterations[2] = {-7, -7};
  CHECK(bucket_moo::cuda::launch_hand_out(
            rows, weights.data(), solutions.data(), shares.numbers(),
            {coefficients.numbers(), found.numbers(), status, iterations, residual.numbers()}, nullptr) == cudaSuccess);
  for (std::size_t at = 0; at < 10; ++at) {
    const auto of = static_cast<std::size_t>(objective[at % 5]);
    CHECK(coefficients[at] == weights[at / 5 * 3 + of] * static_cast<double>(at));
  }
  for (std::size_t i = 0; i < 6; ++i) CHECK(found[i] == weights[i]);
  CHECK(status[0] == static_cast<std::int32_t>(solutions[0].status) && iterations[0] == solutions[0].iterations);
  CHECK(status[1] == static_cast<std::int32_t>(bucket_moo::Status::nonfinite) && iterations[1] == 17);
  CHECK(residual[1] == 0.5);
}

void what_is_out_of_range_is_refused() {
  double value = 1.0;
  const Numbers number{&value, false};
  CHECK(bucket_moo::cuda::launch_convert({}, 0, {}, nullptr) == cudaSuccess);
  CHECK(bucket_moo::cuda::launch_convert({}, 1, number, nullptr) == cudaErrorInvalidValue);
  CHECK(bucket_moo::cuda::launch_convert(number, -1, number, nullptr) == cudaErrorInvalidValue);
  CHECK(bucket_moo::cuda::launch_unpack_gramians(&value, 1, 65, number, nullptr) == cudaErrorInvalidValue);
  CHECK(bucket_moo::cuda::launch_unpack_gramians(nullptr, 1, 1, number, nullptr) == cudaErrorInvalidValue);
  CHECK(bucket_moo::cuda::launch_unpack_gramians(nullptr, 0, 1, {}, nullptr) == cudaSuccess);
  CHECK(bucket_moo::cuda::launch_add_parts(number, 1, 0, 1, &value, number, nullptr) == cudaErrorInvalidValue);
  CHECK(bucket_moo::cuda::launch_add_parts({}, 0, 1, 1, nullptr, {}, nullptr) == cudaSuccess);
  const int objective = 0;
  CHECK(bucket_moo::cuda::launch_hand_out({&objective, 1, 1, 1}, &value, nullptr, number, {}, nullptr) ==
        cudaErrorInvalidValue);
  CHECK(bucket_moo::cuda::launch_hand_out({&objective, 1, 1, 0}, nullptr, nullptr, {}, {}, nullptr) == cudaSuccess);
}

}  // namespace

int main() {
  for (const bool single : {false, true}) {
    checks::context = single ? "float32" : "float64";
    numbers_are_converted(single, false);
    numbers_are_converted(single, true);
    triangles_become_matrices(single);
    parts_are_added_in_their_order(single);
    rows_get_their_objectives_weights(single);
  }
  checks::context = "arguments";
  what_is_out_of_range_is_refused();
  return checks::finish();
}
