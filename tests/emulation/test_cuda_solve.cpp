// The batched solve of the CUDA kernels, on the CPU, against the same source with one lane.
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/solve.hpp>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "checks.hpp"
#include "solve.cuh"
#include "tile.hpp"

namespace {

using bucket_moo::MethodId;

/// [k, k], of random vectors of n elements.
std::vector<double> random_gramian(int k, int n) {
  std::vector<double> rows(static_cast<std::size_t>(k * n));
  for (double& x : rows) x = tiles::random_unit() + 0.1;
  std::vector<double> gramian;
  for (int i = 0; i < k; ++i) {
    for (int j = 0; j < k; ++j) {
      double sum = 0.0;
      for (int x = 0; x < n; ++x)
        sum += rows[static_cast<std::size_t>(i * n + x)] * rows[static_cast<std::size_t>(j * n + x)];
      gramian.push_back(sum);
    }
  }
  return gramian;
}

void same_as_on_the_host(MethodId id, int k, int batch, bool smooth) {
  bucket_moo::Method method{.id = id};
  method.smoothing.alpha = smooth ? 0.5 : 0.0;
  method.krum.n_selected = 2;
  if (k % 4 < 2) method.length = {bucket_moo::Length::fixed, 2.0};
  const auto size = static_cast<std::size_t>(k);
  const auto problems = static_cast<std::size_t>(batch);
  const std::size_t state = bucket_moo::state_size(method, k);
  std::vector<double> states(problems * state, 0.0);
  std::vector<double> host_states = states;
  for (std::uint64_t step = 0; step < 2; ++step) {
    std::vector<double> gramians;
    for (int b = 0; b < batch; ++b) {
      const std::vector<double> one = random_gramian(k, k + 5);
      gramians.insert(gramians.end(), one.begin(), one.end());
    }
    std::vector<double> weights(problems * size, std::nan(""));
    std::vector<bucket_moo::Solution> solutions(problems);
    const bucket_moo::RandomKey key{7, step, 3};
    bucket_moo::cuda::SolveBatch problem{.method = method, .key = key, .batch = batch, .k = k};
    problem.gramians = gramians.data();
    problem.weights = weights.data();
    problem.solutions = solutions.data();
    problem.states = state == 0 ? nullptr : states.data();
    std::vector<bucket_moo::RandomKey> keys;
    if (batch % 4 == 0) {  // the same keys, in device memory
      for (std::size_t b = 0; b < problems; ++b) keys.push_back({key.seed, key.step, key.bucket + b});
      problem.keys = keys.data();
      problem.key = {~key.seed, ~key.step, ~key.bucket};  // must not matter
    }
    CHECK(bucket_moo::cuda::launch_solve(problem, nullptr) == cudaSuccess);
    for (std::size_t b = 0; b < problems; ++b) {
      std::vector<double> scratch(bucket_moo::solve_scratch_size(k));
      std::vector<double> expected(size);
      const double* const gramian = gramians.data() + b * size * size;
      const bucket_moo::Solution host =
          bucket_moo::solve(bucket_moo::HostLanes{}, method, {key.seed, key.step, key.bucket + b}, k, gramian,
                            expected.data(), scratch.data(), state == 0 ? nullptr : host_states.data() + b * state);
      CHECK(host.status == solutions[b].status && host.active == solutions[b].active);
      for (std::size_t i = 0; i < size; ++i) {
        // Lanes add in another order than the host, so compare what is unique: the update's products.
        double moved = 0.0;
        double scale = 0.0;
        for (std::size_t j = 0; j < size; ++j) {
          moved += gramian[i * size + j] * (weights[b * size + j] - expected[j]);
          scale += std::fabs(gramian[i * size + j]);
        }
        CHECK(std::fabs(moved) <= 1e-8 * scale);
      }
    }
    for (std::size_t i = 0; i < states.size(); ++i) CHECK(std::fabs(states[i] - host_states[i]) <= 1e-7);
  }
}

}  // namespace

int main() {
  for (int number = 0; number < bucket_moo::kMethods; ++number) {
    for (const int k : {1, 2, 5, 16, 40, 64}) {
      checks::context = std::string(bucket_moo::kMethodNames[number]) + " K=" + std::to_string(k);
      same_as_on_the_host(static_cast<MethodId>(number), k, k > 40 ? 1 : k > 16 ? 2 : 4, k % 2 == 1);
    }
  }
  checks::context = "arguments";
  int most = 0;
  CHECK(bucket_moo::cuda::solve_limit({}, &most) == cudaSuccess && most == bucket_moo::kMaxObjectives);
  CHECK(bucket_moo::cuda::launch_solve({.method = {}, .key = {}, .batch = 1, .k = 65}, nullptr) ==
        cudaErrorInvalidValue);
  CHECK(bucket_moo::cuda::launch_solve({.method = {}, .key = {}, .batch = 0, .k = 3}, nullptr) == cudaSuccess);
  CHECK(bucket_moo::cuda::launch_solve({.method = {}, .key = {}, .batch = 1, .k = 3}, nullptr) ==
        cudaErrorInvalidValue);
  return checks::finish();
}
