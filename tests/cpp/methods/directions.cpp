// Methods that promise a direction: projections without conflict, and equal or given cosines.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "methods/checks.hpp"

namespace method_checks {

namespace {

/// The cone of updates without conflict, with `lower` <= w: violation and complementarity relative to r = Σ lower |g|.
void check_cone(const std::string& what, const std::string& family, const Gramian& g, const std::vector<Real>& lower,
                const std::vector<Real>& w, Worst& worst) {
  const auto name = [&](const char* part) { return label(what + " " + part, family, g.k); };
  const Real r = length(g, lower);
  const std::vector<Real> product = times(g, w);
  Real violation = 0;
  Real complementary = 0;
  for (int i : active(g)) {
    violation = std::max(violation, -product[at(i)] / norm(g, i) / r);
    complementary += (w[at(i)] - lower[at(i)]) * product[at(i)];
    check(w[at(i)] >= lower[at(i)] * (1 - 4 * kEps), name("w >= p"));
  }
  complementary = std::fabs(complementary) / r / r;
  const Real size = length(g, w) / r;
  worst.add(what + " conflict: " + family, static_cast<double>(violation));
  worst.add(what + " complementarity: " + family, static_cast<double>(complementary));
  // Rounding may leave G indefinite, and then a minimiser need not exist: size squared, where the hull nearly has 0.
  check(static_cast<double>(violation) <= reachable(1e-9, size * size, g.k), name("conflict"));
  check(static_cast<double>(complementary) <= reachable(1e-9, size * size, g.k), name("complementarity"));
}

}  // namespace

void check_projections(const std::string& family, const Gramian& g, Worst& worst) {
  const std::vector<int> on = active(g);
  if (on.empty()) return;
  std::vector<Real> p(at(g.k));
  for (int i : on) p[at(i)] = 1 / static_cast<Real>(on.size());
  bool conflict = false;
  for (int i : on) {
    for (int j : on) conflict = conflict || g(i, j) < 0;
  }
  for (const MethodId id : {MethodId::upgrad, MethodId::dualproj}) {
    const Answer answer = counted(of(id), family, g);
    const std::string what = method_name(id);
    const std::vector<Real> w = extended(answer.weights);
    worst.add(what + " residual: " + family, answer.solution.residual);
    worst.add(what + " iterations: " + family, answer.solution.iterations);
    if (answer.solution.status == Status::fallback) continue;  // MGDA's weights, which have checks of their own
    check((answer.solution.status == Status::ok) == (answer.solution.residual <= 1e-9),
          label(what + " status", family, g.k));
    if (id == MethodId::dualproj) {
      check_cone(what, family, g, p, w, worst);
    } else {
      // The sum over i of problems of their own: no conflict, and each one's certificate through preference e_i.
      const Real r = length(g, p);
      const std::vector<Real> product = times(g, w);
      Real violation = 0;
      for (int i : on) violation = std::max(violation, -product[at(i)] / norm(g, i) / r);
      worst.add(what + " conflict of the sum: " + family, static_cast<double>(violation));
      check(static_cast<double>(violation) <= reachable(1e-9, length(g, w) / r, g.k),
            label(what + " conflict", family, g.k));
      if (g.k <= 8) {
        std::vector<Real> total(at(g.k));
        bool whole = true;
        for (int i : on) {
          Vector unit(at(g.k));
          unit[at(i)] = 1.0;
          Method one = of(id);
          one.upgrad.preference = unit.data();
          const Answer alone = solve(one, g);
          if (alone.solution.status == Status::fallback) {
            whole = false;
            continue;
          }
          const std::vector<Real> v = extended(alone.weights);
          check_cone(what + ", one objective", family, g, extended(unit), v, worst);
          for (int j : on) total[at(j)] += v[at(j)] / static_cast<Real>(on.size());
        }
        for (int j = 0; j < g.k; ++j) total[at(j)] -= w[at(j)];
        // Not unique with more objectives than dimensions, but the update is.
        check(!whole || static_cast<double>(std::fabs(inner(total, times(g, total)))) <=
                            static_cast<double>(1e-14L * r * r + 64 * kEps * length(g, w) * length(g, w)),
              label("upgrad is the sum", family, g.k));
      }
    }
    if (!conflict) {
      for (int i : on)
        check(std::fabs(w[at(i)] - p[at(i)]) <= kEps, label(what + " without conflict w = p", family, g.k));
    }
  }
}

void check_cosines(const std::string& family, const Gramian& g, Random& random, Worst& worst) {
  const std::vector<int> on = active(g);
  if (on.empty()) return;
  Vector preference(at(g.k));
  for (double& x : preference) x = 0.2 + std::uniform_real_distribution<double>()(random);
  for (const int variant : {0, 1, 2}) {
    Method method = of(variant == 0 ? MethodId::imtlg : MethodId::config);
    if (variant == 2) method.config.preference = preference.data();
    const std::string what = variant == 2 ? "config, preference" : method_name(method.id);
    const auto name = [&](const char* part) { return label(what + " " + part, family, g.k); };
    const Answer answer = counted(method, family, g);
    check(answer.solution.status == Status::ok || answer.solution.status == Status::fallback, name("status"));
    const bool singular_target = variant == 2 && (family == "exact duplicates" || family == "all equal");
    bool sum_vanishes = false;
    if (regular(family) && !singular_target && answer.solution.status == Status::fallback) {
      sum_vanishes = variant == 0 && answer.weights[at(on[0])] == 1.0 / static_cast<double>(on.size());
      check(sum_vanishes, name("no fallback on a regular family"));
    }
    if (answer.solution.status != Status::ok) continue;
    const std::vector<Real> w = extended(answer.weights);
    const std::vector<Real> product = times(g, w);
    const Real size = std::sqrt(inner(w, product));
    Real error = 0;
    Real expected = 0;  // what the cosines have in common: a least-squares fit
    Real scale = 0;
    for (int i : on) {
      const Real share = variant == 2 ? static_cast<Real>(preference[at(i)]) : 1;
      expected += product[at(i)] / norm(g, i) / size * share;
      scale += share * share;
    }
    for (int i : on) {
      const Real share = variant == 2 ? static_cast<Real>(preference[at(i)]) : 1;
      error = std::max(error, std::fabs(product[at(i)] / norm(g, i) / size - expected / scale * share));
      if (variant != 0) check(static_cast<double>(product[at(i)] / norm(g, i) / size) > -1e-9, name("conflict"));
    }
    worst.add(what + " cosines: " + family, static_cast<double>(error));
    worst.add(what + " residual: " + family, answer.solution.residual);
    check(static_cast<double>(error) <= reachable(2e-9, length(g, w) / size, g.k), name("cosines"));
    if (variant == 0) {
      const Real sum = std::accumulate(w.begin(), w.end(), Real{0});
      check(static_cast<double>(std::fabs(sum - 1)) <= 1e-9, name("sum"));
    } else {
      // |d| = <Σ g_k, d> / |d|
      const Real along = std::accumulate(product.begin(), product.end(), Real{0}) / size;
      worst.add(what + " length: " + family, static_cast<double>(std::fabs(along - size) / size));
      check(static_cast<double>(std::fabs(along - size) / size) <=
                reachable(1e-8, static_cast<Real>(g.k) * length(g, w) * length(g, w) / size / size, g.k),
            name("length"));
    }
  }
}

}  // namespace method_checks
