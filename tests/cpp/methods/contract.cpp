// What every method promises.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "methods/checks.hpp"

namespace method_checks {

void check_invariants(const Method& method, const std::string& family, const Gramian& g, bool unique, Random& random,
                      Worst& worst) {
  const std::string method_label = method_name(method.id);
  const auto name = [&](const char* what) { return label(method_label + " " + what, family, g.k); };
  const Answer answer = solve(method, g);
  const std::vector<Real> w = extended(answer.weights);
  for (int i = 0; i < g.k; ++i) {
    check(std::isfinite(answer.weights[at(i)]), name("finite"));
    if (g(i, i) == 0) check(answer.weights[at(i)] == 0.0, name("zero row: weight zero"));
  }
  check(solve(method, g).weights == answer.weights, name("deterministic"));
  const bool scale_free = method.id != MethodId::nash_mtl && method.id != MethodId::fairgrad;
  const Vector shrunk = solve(method, scaled(g, 0x1p-40)).weights;
  if (scale_free) check(shrunk == answer.weights, name("scale by a power of two, to the bit"));

  Real largest = 0;
  for (Real x : w) largest = std::max(largest, std::fabs(x));
  const auto apart = [&](const Vector& other) {
    return static_cast<double>(largest_difference(other, answer.weights) / std::max(largest, Real{1e-300L}));
  };
  const bool comparable = unique && answer.solution.status == Status::ok;
  if (scale_free && comparable) {
    for (const double t : {1e-12, 1e12}) {
      const double moved = apart(solve(method, scaled(g, t)).weights);
      worst.add(method_label + " weights, scaled: " + family, moved);
      check(moved <= 1e-7, name("scale"));
    }
  }

  const bool ordered = method.id == MethodId::adasum || method.id == MethodId::gradvac;
  std::vector<int> order(at(g.k));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  const Answer other = solve(method, permuted(g, order));
  Vector back(answer.weights.size());
  for (std::size_t i = 0; i < back.size(); ++i) back[static_cast<std::size_t>(order[i])] = other.weights[i];
  const bool generic =
      starts(family, "wishart") || starts(family, "common") || starts(family, "condition") || starts(family, "norms");
  const bool ties = method.id == MethodId::krum && (g.k <= 3 || !generic);  // nearest pairs have the same score
  if (comparable && !ordered && !ties) {
    worst.add(method_label + " weights, permuted: " + family, apart(back));
    check(apart(back) <= 1e-7, name("permutation"));
  }
  if (ordered || method.id == MethodId::krum || !unique) return;
  for (int i = 0; i < g.k; ++i) {
    for (int j = 0; j < i; ++j) {
      bool same = true;
      for (int l = 0; l < g.k && same; ++l) same = g(i, l) == g(j, l);
      const double difference = std::fabs(answer.weights[at(i)] - answer.weights[at(j)]);
      if (same) check(difference <= 1e-9 * static_cast<double>(largest), name("equal rows, equal weights"));
    }
  }
}

void check_contract(Random& random) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (int id = 0; id < bucket_moo::kMethods; ++id) {
    const Method method = of(static_cast<MethodId>(id));
    const std::string what = method_name(method.id);
    const bool counts_all = method.id == MethodId::mean;
    for (const int k : kSizes) {
      const Gramian g = gramian(gaussian(random, k, k + 3));
      const Vector weights = solve(method, g).weights;
      for (const double bad : {nan, HUGE_VAL, -HUGE_VAL}) {
        Gramian broken = g;
        broken(k - 1, k / 2) = bad;
        const Answer answer = solve(method, broken);
        check(answer.solution.status == Status::nonfinite, label(what + " nonfinite", "contract", k));
        check(answer.weights == Vector(at(k), 1.0 / k), label(what + " nonfinite gives the mean", "contract", k));
      }
      if (!counts_all) {
        const Answer zero = solve(method, scaled(g, 0.0));
        check(zero.solution.status == Status::inactive && zero.weights == Vector(at(k), 0.0),
              label(what + " inactive", "contract", k));
        if (k < bucket_moo::kMaxObjectives && method.id != MethodId::pcgrad && method.id != MethodId::gradvac) {
          Gramian larger{k + 1, Vector(at((k + 1) * (k + 1)))};
          for (int i = 0; i < k; ++i) {
            for (int j = 0; j < k; ++j) larger(i + 1, j + 1) = g(i, j);
          }
          Vector with = solve(method, larger).weights;
          check(with.front() == 0.0, label(what + " inactive weight", "contract", k));
          with.erase(with.begin());
          check(with == weights, label(what + " inactive objective changes nothing", "contract", k));
        }
      }
      for (const double t : {1e-150, 1e150}) {
        const Answer far = solve(method, scaled(g, t));
        check(far.solution.status == solve(method, g).solution.status, label(what + " extreme scale", "contract", k));
        for (double x : far.weights) check(std::isfinite(x), label(what + " extreme scale, finite", "contract", k));
      }
      // Opposite gradients, and copies
      if (k >= 2) {
        Gradients rows = gaussian(random, k, k + 3);
        for (int i = 1; i < k; i += 2) copy_row(rows, i - 1, i, -1.0);
        for (double x : solve(method, gramian(rows)).weights) {
          check(std::fabs(x) <= 1e3, label(what + " of opposite pairs", "contract", k));
        }
      }
    }
    const Answer one = solve(method, Gramian{1, {4.0}});
    const double expected = method.id == MethodId::cagrad     ? 1.4
                            : method.id == MethodId::nash_mtl ? 0.5
                            : method.id == MethodId::fairgrad ? 0.5
                                                              : 1.0;
    check(std::fabs(one.weights[0] - expected) <= 1e-15, what + " K = 1");
    Method unclipped = method;
    unclipped.nash_mtl.max_norm = 0.25;
    if (method.id == MethodId::nash_mtl)
      check(std::fabs(solve(unclipped, Gramian{1, {4.0}}).weights[0] - 0.125) <= 1e-15, "clip");
  }
  check(solve(of(MethodId::imtlg), Gramian{2, {1, -1, -1, 1}}).weights == Vector({0.5, 0.5}), "imtlg of {g, -g}");
  check(solve(of(MethodId::nash_mtl), Gramian{2, {1, -1, -1, 1}}).solution.status == Status::fallback,
        "nash of {g, -g}");

  // K = 2: PCGrad and UPGrad agree.
  for (int trial = 0; trial < 500; ++trial) {
    Gradients rows = gaussian(random, 2, 4);
    scale_rows_over(random, rows, 3);
    const Gramian g = gramian(rows);
    check(largest_difference(solve(of(MethodId::pcgrad), g).weights, solve(of(MethodId::upgrad), g).weights) <=
              1e-11 * std::max(g(0, 0) / g(1, 1), g(1, 1) / g(0, 0)),
          "K = 2: PCGrad is UPGrad");
  }
}

}  // namespace method_checks
