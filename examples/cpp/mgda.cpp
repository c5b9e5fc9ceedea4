// MGDA in plain C++: three gradients in the plane, two of them in conflict.
//
//   c++ -std=c++20 -I cpp/include examples/cpp/mgda.cpp -o mgda && ./mgda
//
// The library sees gradients only through their Gramian, so they may be of any size and live anywhere.

#include <array>
#include <bucket_moo/solve.hpp>
#include <cmath>
#include <cstdio>
#include <vector>

int main() {
  constexpr int kObjectives = 3;
  // The shortest vector in the hull of these is (0.5, 0.5): halfway between the first two; the third is behind it.
  constexpr std::array<std::array<double, 2>, kObjectives> gradients{{{2.0, -1.0}, {-1.0, 2.0}, {3.0, 3.0}}};

  std::array<double, kObjectives * kObjectives> gramian{};
  for (int i = 0; i < kObjectives; ++i) {
    for (int j = 0; j < kObjectives; ++j) {
      for (int x = 0; x < 2; ++x) gramian[i * kObjectives + j] += gradients[i][x] * gradients[j][x];
    }
  }

  const bucket_moo::Method method{.id = bucket_moo::MethodId::mgda};
  std::array<double, kObjectives> weights{};
  std::vector<double> scratch(bucket_moo::solve_scratch_size(kObjectives));
  const bucket_moo::Solution solution = bucket_moo::solve(bucket_moo::HostLanes{}, method, bucket_moo::RandomKey{},
                                                          kObjectives, gramian.data(), weights.data(), scratch.data());

  std::array<double, 2> update{};
  for (int i = 0; i < kObjectives; ++i) {
    for (int x = 0; x < 2; ++x) update[x] += weights[i] * gradients[i][x];
  }
  std::printf("weights      %.6f %.6f %.6f\n", weights[0], weights[1], weights[2]);
  std::printf("update       (%.6f, %.6f)\n", update[0], update[1]);
  std::printf("duality gap  %.1e of the mean squared norm\n", solution.residual);
  for (int i = 0; i < kObjectives; ++i) {
    const double product = gradients[i][0] * update[0] + gradients[i][1] * update[1];
    std::printf("objective %d decreases at rate %.6f\n", i, product);
  }

  const bool right = solution.status == bucket_moo::Status::ok && std::fabs(update[0] - 0.5) < 1e-12 &&
                     std::fabs(update[1] - 0.5) < 1e-12;
  return right ? 0 : 1;
}
