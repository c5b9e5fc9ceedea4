// Methods that solve an equation of the Gramian: AlignedMTL's singular values, the equilibria of NashMTL and FairGrad.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "methods/checks.hpp"

namespace method_checks {

namespace {

/// Eigenvalues by Jacobi rotations in long double, ascending.
std::vector<Real> eigenvalues(const Gramian& g) {
  const int k = g.k;
  std::vector<Real> a(g.entries.begin(), g.entries.end());
  const auto entry = [&](int i, int j) -> Real& { return a[at(i * k + j)]; };
  for (int sweep = 0; sweep < 30; ++sweep) {
    for (int p = 0; p < k; ++p) {
      for (int q = p + 1; q < k; ++q) {
        if (entry(p, q) == 0) continue;
        const Real theta = (entry(q, q) - entry(p, p)) / (2 * entry(p, q));
        const Real t = (theta < 0 ? -1 : 1) / (std::fabs(theta) + std::sqrt(theta * theta + 1));
        const Real c = 1 / std::sqrt(t * t + 1);
        const Real s = t * c;
        for (int i = 0; i < k; ++i) {
          const Real x = entry(i, p);
          const Real y = entry(i, q);
          entry(i, p) = c * x - s * y;
          entry(i, q) = s * x + c * y;
        }
        for (int i = 0; i < k; ++i) {
          const Real x = entry(p, i);
          const Real y = entry(q, i);
          entry(p, i) = c * x - s * y;
          entry(q, i) = s * x + c * y;
        }
      }
    }
  }
  std::vector<Real> values;
  for (int i = 0; i < k; ++i) values.push_back(entry(i, i));
  std::sort(values.begin(), values.end());
  return values;
}

}  // namespace

void check_aligned(const std::string& family, const Gramian& g, Worst& worst) {
  using bucket_moo::ScaleMode;
  const std::vector<int> on = active(g);
  if (on.empty()) return;
  for (const ScaleMode mode : {ScaleMode::min, ScaleMode::median, ScaleMode::mean}) {
    Method method = of(MethodId::aligned_mtl);
    method.aligned_mtl.scale_mode = mode;
    const auto name = [&](const char* part) { return label(std::string("aligned_mtl ") + part, family, g.k); };
    const Answer answer = counted(method, family, g);
    worst.add("aligned_mtl residual: " + family, answer.solution.residual);
    check(answer.solution.status == Status::ok, name("status"));
    if (g.k > 16) continue;
    std::vector<Real> values = eigenvalues(g);
    const Real floor =
        static_cast<Real>(on.size()) * static_cast<Real>(std::numeric_limits<float>::epsilon()) * values.back();
    bool close = false;
    for (const Real x : values) close = close || std::fabs(x / floor - 1) < 1e-6L;
    if (close) continue;
    values.erase(values.begin(), std::lower_bound(values.begin(), values.end(), floor));
    const std::size_t rank = values.size();
    const Real scale = mode == ScaleMode::min ? values.front()
                       : mode == ScaleMode::median
                           ? values[(rank - 1) / 2]
                           : std::accumulate(values.begin(), values.end(), Real{0}) / static_cast<Real>(rank);
    // M = BᵀGB / scale is to be a projection of that rank.
    std::vector<std::vector<Real>> columns;
    for (int i = 0; i < g.k; ++i) {
      Vector unit(at(g.k));
      unit[at(i)] = 1.0;
      method.aligned_mtl.preference = unit.data();
      const bool off = g(i, i) == 0;  // then the preference counts as missing
      columns.push_back(off ? std::vector<Real>(at(g.k)) : extended(solve(method, g).weights));
    }
    std::vector<std::vector<Real>> m;
    Real trace = 0;
    for (int i = 0; i < g.k; ++i) {
      const std::vector<Real> product = times(g, columns[at(i)]);
      std::vector<Real> row;
      for (int j = 0; j < g.k; ++j) row.push_back(inner(columns[at(j)], product) / scale);
      trace += row[at(i)];
      m.push_back(row);
    }
    Real error = std::fabs(trace - static_cast<Real>(rank));
    for (int i = 0; i < g.k; ++i) {
      for (int j = 0; j < g.k; ++j) {
        Real square = 0;
        for (int l = 0; l < g.k; ++l) square += m[at(i)][at(l)] * m[at(l)][at(j)];
        error = std::max(error, std::fabs(square - m[at(i)][at(j)]));
      }
    }
    worst.add("aligned_mtl singular values: " + family, static_cast<double>(error));
    check(static_cast<double>(error) <= 1e-8, name("singular values"));
  }
}

void check_equilibria(const std::string& family, const Gramian& g, Worst& worst) {
  const std::vector<int> on = active(g);
  if (on.empty()) return;
  const auto objectives = static_cast<Real>(on.size());
  for (const double alpha : {0.0, 0.5, 1.0, 2.0, 8.0}) {  // 0: NashMTL
    Method method = of(alpha == 0.0 ? MethodId::nash_mtl : MethodId::fairgrad);
    method.fairgrad.alpha = alpha;
    const std::string what =
        method_name(method.id) + (alpha == 0.0 ? std::string() : std::string(" ") + std::to_string(alpha).substr(0, 3));
    const auto name = [&](const char* part) { return label(what + " " + part, family, g.k); };
    const Answer answer = counted(method, family, g);
    worst.add(what + " iterations: " + family, answer.solution.iterations);
    const std::vector<Real> w = extended(answer.weights);
    const std::vector<Real> product = times(g, w);
    if (alpha == 0.0) {
      const Real square = inner(w, product);
      check(static_cast<double>(square) <= 1 + reachable(1e-9, 8 * length(g, w) * length(g, w), g.k), name("clip"));
    }
    if (answer.solution.status == Status::fallback) {
      check(!regular(family) || starts(family, "condition 1e10"), name("no fallback on a regular family"));
      check(answer.solution.residual <= 1e-9, name("fallback certificate"));
      continue;
    }
    Real error = 0;
    Real noise = 0;
    for (int i : on) {
      const Real x = w[at(i)];
      const Real ratio =
          alpha == 0.0 ? x * product[at(i)] * objectives : product[at(i)] * std::pow(x, 1 / static_cast<Real>(alpha));
      error = std::max(error, std::fabs(ratio - 1));
      Real terms = 0;
      for (int j : on) terms += std::fabs(static_cast<Real>(g(i, j)) * w[at(j)]);
      noise = std::max(noise, terms / std::fabs(product[at(i)]));
      check(x > 0, name("positive"));
      if (error < 1) check(product[at(i)] > 0, name("conflict"));
    }
    worst.add(what + " equilibrium: " + family, static_cast<double>(error));
    worst.add(what + " equilibrium less rounding: " + family, static_cast<double>(error - (8 + g.k) * kEps * noise));
    check(static_cast<double>(error) <=
              (easy(family) && family != "norms over 8 decades" ? 1e-8 : reachable(1e-8, noise, g.k)),
          name("equilibrium"));
    if (easy(family) && family != "norms over 8 decades") check(answer.solution.status == Status::ok, name("status"));

    // The law of scale: g -> t g.
    if (!easy(family)) continue;
    for (const double t : {1e-6, 0x1p-7, 1e6}) {
      const double power = alpha == 0.0 ? -1.0 : -2.0 * alpha / (1.0 + alpha);
      const Vector other = solve(method, scaled(g, t)).weights;
      for (int i : on) {
        const double expected = answer.weights[at(i)] * std::pow(t, power);
        check(std::fabs(other[at(i)] - expected) <= 1e-7 * expected, name("scale law"));
      }
    }
    if (alpha == 0.0) {
      method.nash_mtl.max_norm = 0.0;
      const std::vector<Real> raw = extended(solve(method, g).weights);
      check(static_cast<double>(std::fabs(inner(raw, times(g, raw)) / objectives - 1)) <= 1e-7,
            name("|d|^2 = K unclipped"));
    }
  }
}

}  // namespace method_checks
