// What every solve promises, and closed forms.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "core/checks.hpp"

namespace core_checks {

void check_contract() {
  Random random(5);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<MethodId> methods{MethodId::mean, MethodId::mgda, MethodId::cagrad, MethodId::pcgrad};
  for (const MethodId id : methods) {
    const bucket_moo::Method method{.id = id};
    for (const int k : kSizes) {
      const Gramian g = gramian(gaussian(random, k, k + 3));
      for (const double bad : {nan, infinity, -infinity}) {
        Gramian broken = g;
        broken(k - 1, k / 2) = bad;
        broken(0, 0) = 0.0;  // inactive objectives count too
        if (k == 1) broken(0, 0) = bad;
        const Answer answer = solve(method, broken);
        check(answer.solution.status == Status::nonfinite, label("nonfinite status", "contract", k));
        check(answer.weights == Vector(static_cast<std::size_t>(k), 1.0 / k),
              label("nonfinite gives the mean", "contract", k));
      }
      const Answer zero = solve(method, scaled(g, 0.0));
      if (id == MethodId::mean) {
        check(zero.weights == Vector(static_cast<std::size_t>(k), 1.0 / k), label("mean counts all", "contract", k));
      } else {
        check(zero.solution.status == Status::inactive && zero.weights == Vector(static_cast<std::size_t>(k), 0.0),
              label("inactive", "contract", k));
      }

      // An inactive objective must not change the others.
      Gramian larger{k + 1, Vector(static_cast<std::size_t>((k + 1) * (k + 1)))};
      for (int i = 0; i < k; ++i) {
        for (int j = 0; j < k; ++j) larger(i, j) = g(i, j);
      }
      if (k < bucket_moo::kMaxObjectives && (id == MethodId::mgda || id == MethodId::cagrad)) {
        Vector with = solve(method, larger).weights;
        check(with.back() == 0.0, label("inactive weight", "contract", k));
        with.pop_back();
        check(with == solve(method, g).weights, label("inactive objective changes nothing", "contract", k));
      }

      // Rounding may leave G unsymmetric: the method sees (G + G^T) / 2.
      Gramian skewed = g;
      for (int i = 0; i < k; ++i) {
        for (int j = 0; j < i; ++j) {
          skewed(i, j) += 0.25 * std::ldexp(1.0, -3);
          skewed(j, i) -= 0.25 * std::ldexp(1.0, -3);
        }
      }
      check(largest_difference(solve(method, skewed).weights, solve(method, g).weights) < 1e-6,
            label("symmetrised", "contract", k));

      // Near the ends of the range of doubles nothing overflows on the way.
      for (const double t : {1e-150, 1e150}) {
        const Answer far = solve(method, scaled(g, t));
        check(far.solution.status == Status::ok, label("extreme scale", "contract", k));
      }
    }
    const Answer one = solve(method, Gramian{1, {4.0}});
    check(std::fabs(one.weights[0] - (id == MethodId::cagrad ? 1.4 : 1.0)) < 1e-15, "K = 1");

    // Garbage in, some answer out: not a Gramian at all.
    for (int trial = 0; trial < 300; ++trial) {
      const int k = kSizes[random() % kSizes.size()];
      Gramian g{k, Vector(static_cast<std::size_t>(k * k))};
      for (double& x : g.entries) x = normal(random) * std::pow(10.0, 20 * normal(random));
      const Answer answer = solve(method, g);
      if (id == MethodId::mgda && answer.solution.active > 0) {
        const double sum = std::accumulate(answer.weights.begin(), answer.weights.end(), 0.0);
        check(std::fabs(sum - 1) < 1e-9, label("simplex even for garbage", "contract", k));
      }
    }
  }
  check(std::fabs(solve(cagrad(0.4, true), Gramian{1, {4.0}}).weights[0] - 1.0) < 1e-15, "K = 1, rescaled");

  for (const int k : kSizes) {
    const Gramian g = gramian(gaussian(random, k, k + 3));
    check(solve(cagrad(0.0), g).weights == Vector(static_cast<std::size_t>(k), 1.0 / k), "cagrad c = 0 is the mean");
    Gramian orthogonal{k, Vector(static_cast<std::size_t>(k * k))};
    for (int i = 0; i < k; ++i) orthogonal(i, i) = 1.0 + i;
    check(largest_difference(solve({.id = MethodId::pcgrad}, orthogonal).weights,
                             Vector(static_cast<std::size_t>(k), 1.0 / k)) < 1e-15,
          "pcgrad without conflict is the mean");
  }
  const Gramian opposite{2, {1.0, -1.0, -1.0, 1.0}};
  check(solve(cagrad(0.4), opposite).weights == Vector({0.5, 0.5}), "cagrad: the mean vanishes");
  check(largest_difference(solve(mgda(), opposite).weights, {0.5, 0.5}) < 1e-15, "mgda of {g, -g}");

  const Vector given{1.0, 3.0, 0.0};
  const bucket_moo::Method weighted{.id = MethodId::mean, .mean = {.weights = given.data()}};
  check(solve(weighted, gramian(gaussian(random, 3, 5))).weights == Vector({0.25, 0.75, 0.0}), "weighted mean");

  // K = 2 has a closed form.
  for (int trial = 0; trial < 1000; ++trial) {
    Gradients rows = gaussian(random, 2, 4);
    scale_rows_over(random, rows, 2);
    const Gramian g = gramian(rows);
    const double expected = std::clamp((g(1, 1) - g(0, 1)) / (g(0, 0) + g(1, 1) - 2 * g(0, 1)), 0.0, 1.0);
    check(std::fabs(solve(mgda(), g).weights[0] - expected) < 1e-12, "mgda closed form for two");
  }
}

}  // namespace core_checks
