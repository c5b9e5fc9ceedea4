// What a warp does for one solve, counted and held to a budget, so that no solve comes to cost more unnoticed.
//
//   test_solve_cost         prints the counts, in the form of the budget
//   test_solve_cost BUDGET  compares them with cuda/solve_budget.txt; fewer are fine
//
// A line is method, K, and of lane 0, from the Gramian in the scratch to the weights, the mean over some problems of
//   rounds     exchanges between lanes that wait for one another: the rounds of reductions, and votes
//   shuffles   values that lanes send each other in them
//   barriers   __syncwarp
//   divisions  of float64, and square roots
//   loads      float64 values that the source reads from the scratch; a compiler may keep some in registers
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "checks.hpp"
#include "counted.hpp"
#include "cuda_runtime.h"
#include "launch.cuh"

#define double counted::Float64
#include <bucket_moo/solve.hpp>
#undef double

namespace {

using bucket_moo::MethodId;
using counted::Float64;

struct Waits {
  long rounds = 0;
  long barriers = 0;
};
Waits waits;

bool is_lane_0() { return threadIdx.x == 0; }

/// WarpLanes, with a count of what passes through.
class CountedLanes : public bucket_moo::SingleReductions<CountedLanes> {
  using Warp = bucket_moo::WarpLanes;

 public:
  static constexpr bool kSerial = false;

  explicit CountedLanes(int k) : warp_(k) {}

  static int lane() { return Warp::lane(); }
  static int count() { return Warp::count(); }
  static void sync() {
    if (is_lane_0()) ++waits.barriers;
    Warp::sync();
  }
  static bool any(bool x) {
    if (is_lane_0()) ++waits.rounds;
    return Warp::any(x);
  }
  template <class... Reductions>
  void reduce(Reductions... reductions) const {
    const long before = counted::watch.tally.shuffles;
    warp_.reduce(reductions...);
    if (is_lane_0()) {  // two a value in the first round
      waits.rounds += (counted::watch.tally.shuffles - before) / (values(reductions.value) + ...) - 1;
    }
  }
  template <class T>
  static T* near(T* pointer) {
    return pointer;
  }
  static Float64 divisor(const Float64& x) { return Warp::divisor(x); }
  static Float64 divide(const Float64& x, const Float64& divisor) { return Warp::divide(x, divisor); }

 private:
  static int values(const Float64&) { return 1; }
  static int values(const bucket_moo::Located&) { return 2; }

  Warp warp_;
};

struct Problem {
  bucket_moo::Method method;
  int k;
  Float64* memory;  // weights, then scratch with the Gramian at its end
};

template <class M>
__global__ void solve(const Problem* const given) {
  const Problem& problem = *given;
  const int k = problem.k;
  Float64* const scratch = problem.memory + k;
  bucket_moo::solve_one<M>(CountedLanes(k), problem.method, {7, 1, 0}, k,
                           scratch + bucket_moo::gramian_in_scratch(M::kId, k), problem.memory, scratch);
}

/// [k, k], of k rows with a common component, so that some conflict and some do not.
std::vector<double> gramian_of(int k, std::uint32_t seed) {
  const int n = k + 4;
  std::minstd_rand random(seed);
  std::vector<double> rows(static_cast<std::size_t>(k * n));
  for (double& x : rows) x = static_cast<double>(random()) / std::minstd_rand::max() - 0.4;
  std::vector<double> gramian;
  for (int i = 0; i < k; ++i) {
    for (int j = 0; j < k; ++j) {
      double sum = 0.0;
      for (int x = 0; x < n; ++x) {
        sum += rows[static_cast<std::size_t>(i * n + x)] * rows[static_cast<std::size_t>(j * n + x)];
      }
      gramian.push_back(sum);
    }
  }
  return gramian;
}

/// rounds, shuffles, barriers, divisions, loads
using Costs = std::array<long, 5>;

/// The mean over some problems.
template <class M>
Costs costs_of(int k) {
  constexpr int kProblems = 16;
  Costs total = {};
  for (std::uint32_t seed = 1; seed <= kProblems; ++seed) {
    const std::size_t size = static_cast<std::size_t>(k) + bucket_moo::solve_scratch_size(M::kId, k);
    std::vector<Float64> memory(size, Float64(std::nan("")));
    const std::vector<double> gramian = gramian_of(k, seed);
    std::copy(gramian.begin(), gramian.end(), memory.data() + k + bucket_moo::gramian_in_scratch(M::kId, k));
    waits = {};
    counted::watch = {.counts = is_lane_0, .begin = memory.data(), .end = memory.data() + size, .tally = {}};
    const Problem problem{.method = {.id = M::kId}, .k = k, .memory = memory.data()};
    CHECK(bucket_moo::cuda::launch(solve<M>, {1, 32}, nullptr, &problem) == cudaSuccess);
    const counted::Tally tally = counted::watch.tally;
    counted::watch = {};
    for (int i = 0; i < k; ++i) CHECK(std::isfinite(memory[static_cast<std::size_t>(i)].read()));
    const Costs costs = {waits.rounds, tally.shuffles, waits.barriers, tally.divisions, tally.loads};
    for (std::size_t i = 0; i < costs.size(); ++i) total[i] += costs[i];
  }
  for (long& cost : total) cost = (cost + kProblems - 1) / kProblems;
  return total;
}

/// A line of the budget.
struct Line {
  std::string method;
  int k = 0;
  Costs costs = {};
};

std::istream& operator>>(std::istream& in, Line& line) {
  in >> line.method >> line.k;
  for (long& cost : line.costs) in >> cost;
  return in;
}

std::ostream& operator<<(std::ostream& out, const Line& line) {
  out << line.method << ' ' << line.k;
  for (const long cost : line.costs) out << ' ' << cost;
  return out << '\n';
}

bool within(const Costs& costs, const Costs& budget) {
  return std::equal(costs.begin(), costs.end(), budget.begin(), [](long cost, long most) { return cost <= most; });
}

template <class... Each>
std::vector<Line> count(bucket_moo::MethodList<Each...>) {
  std::vector<Line> lines;
  const auto add = [&]<class M>(M) {
    for (const int k : {2, 4, 8, 16, 32}) lines.push_back({M::kName, k, costs_of<M>(k)});
  };
  (add(Each{}), ...);
  return lines;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace bucket_moo;
  const std::vector<Line> lines = count(MethodList<MgdaMethod, CagradMethod, UpgradMethod, NashMtlMethod>{});
  if (argc < 2) {
    for (const Line& line : lines) std::cout << line;
    return 0;
  }
  CHECK(within({1, 2, 3, 4, 5}, {1, 2, 3, 4, 5}) && !within({1, 2, 3, 4, 6}, {9, 9, 9, 9, 5}));
  std::ifstream file(argv[1]);
  for (const Line& line : lines) {
    Line budget;
    file >> budget;
    CHECK(file && budget.method == line.method && budget.k == line.k);
    if (!within(line.costs, budget.costs)) std::cout << "counted  " << line << "budgeted " << budget;
    CHECK(within(line.costs, budget.costs));
  }
  return checks::finish();
}
