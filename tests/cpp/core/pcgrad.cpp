// PCGrad: against its paper's loop, and the permutations that it draws.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "core/checks.hpp"

namespace core_checks {

namespace {

/// PCGrad as its paper has it, on the gradients themselves.
Vector pcgrad_reference(const Gramian& g, const std::vector<int>& order, bool mean) {
  const auto k = static_cast<std::size_t>(g.k);
  std::vector<Real> total(k);
  const std::vector<int> on = active(g);
  for (int i : on) {
    std::vector<Real> c(k);
    c[static_cast<std::size_t>(i)] = 1;
    for (int t = 0; t < g.k; ++t) {
      const int j = order[static_cast<std::size_t>(i * g.k + t)];
      if (j == i || g(j, j) == 0) continue;
      const Real p = times(g, c)[static_cast<std::size_t>(j)];
      if (p < 0) c[static_cast<std::size_t>(j)] -= p / static_cast<Real>(g(j, j));
    }
    for (std::size_t j = 0; j < k; ++j) total[j] += c[j];
  }
  Vector result(k);
  for (std::size_t j = 0; j < k; ++j)
    result[j] = static_cast<double>(total[j] / (mean ? static_cast<Real>(on.size()) : 1));
  return result;
}

}  // namespace

void check_pcgrad(const std::string& family, const Gramian& g, Random& random, Worst& worst) {
  const auto name = [&](const char* what) { return label(what, family, g.k); };
  if (active(g).empty() || g.k > 33) return;  // the reference is slow
  std::vector<int> order;
  for (int i = 0; i < g.k; ++i) {
    std::vector<int> row(static_cast<std::size_t>(g.k));
    std::iota(row.begin(), row.end(), 0);
    std::shuffle(row.begin(), row.end(), random);
    order.insert(order.end(), row.begin(), row.end());
  }
  for (const bool mean : {true, false}) {
    bucket_moo::Method method{.id = MethodId::pcgrad};
    method.pcgrad.reduction = mean ? bucket_moo::PcgradReduction::mean : bucket_moo::PcgradReduction::sum;
    method.pcgrad.permutation = order.data();
    const Vector weights = solve(method, g).weights;
    const Vector expected = pcgrad_reference(g, order, mean);
    double error = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      error = std::max(error, std::fabs(weights[i] - expected[i]) / (1 + std::fabs(expected[i])));
    }
    // Whether a product of noise is negative is anybody's guess: compare where no such tie is built in.
    const bool ties = family.find("rank one") == 0 || family.find("stationary") != std::string::npos ||
                      family.find("duplicates") != std::string::npos || family.find("fewer") != std::string::npos ||
                      family.find("norms over 4") != std::string::npos || family == "all equal";
    if (!ties) {
      worst.add("pcgrad against reference", error);
      check(error <= 1e-9, name("pcgrad"));
    }
  }

  bucket_moo::Method method{.id = MethodId::pcgrad};
  const RandomKey key{3, 14, 15};
  const Answer drawn = solve(method, g, key);
  check(drawn.solution.status == Status::ok && drawn.solution.residual == 0.0, name("pcgrad status"));
  check(drawn.weights == solve(method, g, key).weights, name("pcgrad deterministic"));
  for (int i = 0; i < g.k; ++i) bucket_moo::permutation(key, i, g.k, order.data() + i * g.k);
  method.pcgrad.permutation = order.data();
  check(drawn.weights == solve(method, g).weights, name("pcgrad draws permutation(key, i)"));
}

}  // namespace core_checks
