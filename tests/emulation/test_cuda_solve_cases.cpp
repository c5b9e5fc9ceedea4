// The solve kernels on Gramians that take the solvers' rarer ways, for what watches them: see test_cuda_solve.cpp on
// results.
#include <cuda_runtime.h>

#include <bucket_moo/lanes.hpp>
#include <bucket_moo/method_list.hpp>
#include <bucket_moo/solve.hpp>
#include <bucket_moo/state_layout.hpp>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "checks.hpp"
#include "launch.cuh"
#include "solve.cuh"
#include "tile.hpp"

namespace {

using bucket_moo::Method;
using bucket_moo::MethodId;
using bucket_moo::Solution;
using bucket_moo::Status;

/// Gradients, and their Gramian.
class Rows {
 public:
  /// Random, `common` of each the same. \param n elements; fewer than k: dependent
  Rows(int k, int n, double common) : k_(static_cast<std::size_t>(k)), n_(static_cast<std::size_t>(n)) {
    for (std::size_t i = 0; i < k_ * n_; ++i) values_.push_back(tiles::random_unit() + common);
  }

  /// \param rows of the same length
  explicit Rows(const std::vector<std::vector<double>>& rows) : k_(rows.size()), n_(rows[0].size()) {
    for (const std::vector<double>& row : rows) values_.insert(values_.end(), row.begin(), row.end());
  }

  /// Row i becomes `factor` times row j.
  void repeat(int i, int j, double factor) {
    for (std::size_t x = 0; x < n_; ++x) at(i, x) = factor * at(j, x);
  }

  double& at(int i, int x) { return at(i, static_cast<std::size_t>(x)); }

  std::vector<double> gramian() {
    std::vector<double> all;
    for (std::size_t i = 0; i < k_; ++i) {
      for (std::size_t j = 0; j < k_; ++j) {
        double sum = 0.0;
        for (std::size_t x = 0; x < n_; ++x) sum += values_[i * n_ + x] * values_[j * n_ + x];
        all.push_back(sum);
      }
    }
    return all;
  }

 private:
  double& at(int i, std::size_t x) { return values_[static_cast<std::size_t>(i) * n_ + x]; }

  std::size_t k_;
  std::size_t n_;
  std::vector<double> values_;
};

/// Two steps with the same Gramian, so that the second finds a state.
void solve(const Method& method, int k, const std::vector<double>& gramian, bool finite) {
  const auto size = static_cast<std::size_t>(k);
  std::vector<double> state(bucket_moo::state_size(method, k), 0.0);
  for (std::uint64_t step = 0; step < 2; ++step) {
    std::vector<double> weights(size, std::nan(""));
    Solution solution;
    bucket_moo::cuda::SolveBatch problem{.method = method, .key = {7, step, 3}, .batch = 1, .k = k};
    problem.gramians = gramian.data();
    problem.weights = weights.data();
    problem.solutions = &solution;
    problem.states = state.empty() ? nullptr : state.data();
    CHECK(bucket_moo::cuda::launch_solve(problem, nullptr) == cudaSuccess);
    CHECK((solution.status == Status::nonfinite) == !finite);
    for (const double weight : weights) CHECK(std::isfinite(weight));
  }
}

/// Every method, with its other options in every second case.
void solve_by_all(int k, const std::vector<double>& gramian, bool finite = true) {
  std::vector<double> preference(static_cast<std::size_t>(k));
  std::vector<int> permutation;
  for (int i = 0; i < k; ++i) {
    preference[static_cast<std::size_t>(i)] = i % 3 == 1 ? 0.0 : 1.0 + i;
    for (int j = 0; j < k; ++j) permutation.push_back(k - 1 - j);
  }
  const std::string name = checks::context;
  for (int number = 0; number < bucket_moo::kMethods; ++number) {
    for (const bool others : {false, true}) {
      Method method{.id = static_cast<MethodId>(number)};
      if (others) {
        method.mean.weights = preference.data();
        method.mgda.normalize = bucket_moo::Normalize::l2;
        method.cagrad.rescale = true;
        method.pcgrad.permutation = permutation.data();
        method.upgrad.preference = preference.data();
        method.dualproj.preference = preference.data();
        method.aligned_mtl.preference = preference.data();
        method.aligned_mtl.scale_mode = bucket_moo::ScaleMode::median;
        method.nash_mtl.max_norm = 0.0;
        method.fairgrad.alpha = 2.0;
        method.config.preference = preference.data();
        method.gradvac.permutation = permutation.data();
        method.krum.n_selected = k > 3 ? 3 : 1;
        method.smoothing.alpha = 0.5;
        method.length = {bucket_moo::Length::mean};
      }
      checks::context = name + " K=" + std::to_string(k) + " " + bucket_moo::kMethodNames[number];
      solve(method, k, gramian, finite);
    }
  }
}

/// The shortest gradient, from which solvers start, is not in the part of the hull that is nearest to the origin.
std::vector<double> gramian_whose_start_leaves(int k) {
  Rows rows(k, k, 0.0);
  for (int i = 0; i < k; ++i) {
    for (int x = 0; x < k; ++x) rows.at(i, x) = 0.0;
    rows.at(i, 0) = i == 0 ? 1.0 : 0.3;
    if (i > 0) rows.at(i, i - (i + 1) % 2) = i % 2 == 1 ? 3.0 : -3.5;
  }
  return rows.gramian();
}

/// Three gradients each, by hand: what random ones do not make happen.
void rare_turns() {
  constexpr double kLittle = 1e-9;  // shows in a slope; its square, in a squared distance or a value, is rounding noise
  checks::context = "a dependent one enters";
  solve_by_all(3, Rows({{1.0, 1.0}, {1.0, -1.0}, {1.0 - kLittle, 3.0}}).gramian());
  checks::context = "one enters and brings nothing";
  solve_by_all(3, Rows({{1.0, 1.0, 0.0}, {1.0, -1.0, 0.0}, {1.0 - kLittle, 2.0, 2.0}}).gramian());
  checks::context = "the start leaves two, the second of them shorter";
  solve_by_all(3, Rows({{1.0, 0.0}, {0.1, -3.5}, {0.3, 3.0}}).gramian());
  checks::context = "almost cancelling, far from CAGrad's root";
  solve_by_all(3, Rows({{0.0, 3.0, 1.0}, {300.0, 0.0, -3.0}, {-300.0, -2.0, 0.0}}).gramian());
}

/// Weights are visible to all lanes on return.
__global__ void solve_mgda(Method method, int k, const double* gramian, double* weights, double* scratch,
                           double* seen) {
  const bucket_moo::WarpLanes lanes(k);
  bucket_moo::solve_one<bucket_moo::MgdaMethod>(lanes, method, {}, k, gramian, weights, scratch);
  for (int i = lanes.lane(); i < k; i += lanes.count()) seen[i] = weights[k - 1 - i];
}

void weights_are_visible() {
  constexpr int kObjectives = 12;
  for (const bool zero : {false, true}) {
    checks::context = zero ? "visible zeros" : "visible weights";
    std::vector<double> gramian = Rows(kObjectives, 20, 0.1).gramian();
    if (zero) gramian.assign(gramian.size(), 0.0);
    std::vector<double> weights(kObjectives);
    std::vector<double> seen(kObjectives, std::nan(""));
    const Method method{.id = MethodId::mgda};
    std::vector<double> scratch(bucket_moo::solve_scratch_size(method.id, kObjectives));
    CHECK(bucket_moo::cuda::launch(solve_mgda, {1, 32}, nullptr, method, kObjectives, gramian.data(), weights.data(),
                                   scratch.data(), seen.data()) == cudaSuccess);
    CHECK(seen == std::vector<double>(weights.rbegin(), weights.rend()));
  }
}

}  // namespace

int main() {
  weights_are_visible();
  rare_turns();
  for (const int k : {2, 7, 33}) {
    checks::context = "independent";
    solve_by_all(k, Rows(k, k + 9, 0.1).gramian());
    checks::context = "in conflict";
    solve_by_all(k, Rows(k, k + 2, 0.0).gramian());
    checks::context = "dependent";
    solve_by_all(k, Rows(k, (k + 1) / 2, 0.0).gramian());
    checks::context = "alike";
    Rows alike(k, k + 4, 0.1);
    for (int i = 1; i < k; i += 2) alike.repeat(i, i - 1, 1.0);
    solve_by_all(k, alike.gramian());
    checks::context = "opposed, and of very different lengths";
    Rows opposed(k, k + 4, 0.0);
    for (int i = 1; i < k; i += 2) opposed.repeat(i, i - 1, -1e-6);
    solve_by_all(k, opposed.gramian());
    checks::context = "almost cancelling";
    Rows cancelling(k, k + 4, 0.0);
    for (int i = 1; i < k; i += 2) cancelling.repeat(i, i - 1, -1.0 + 1e-5);
    if (k % 2 == 1) cancelling.repeat(k - 1, k - 1, 1e-3);
    solve_by_all(k, cancelling.gramian());
    checks::context = "almost alike";
    solve_by_all(k, Rows(k, k + 4, 1e7).gramian());
    checks::context = "the start leaves";
    solve_by_all(k, gramian_whose_start_leaves(k));
    checks::context = "some zero";
    Rows some(k, k + 4, 0.1);
    for (int i = 0; i < k; i += 3) some.repeat(i, i, 0.0);
    solve_by_all(k, some.gramian());
    checks::context = "all zero";
    solve_by_all(k, std::vector<double>(static_cast<std::size_t>(k * k), 0.0));
    checks::context = "NaN";
    std::vector<double> broken = some.gramian();
    broken[static_cast<std::size_t>(k)] = std::nan("");
    solve_by_all(k, broken, false);
  }
  return checks::finish();
}
