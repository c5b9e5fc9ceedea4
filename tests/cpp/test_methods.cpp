// Certificates and invariants of the methods beyond Mean, MGDA, CAGrad and PCGrad (those: test_core.cpp), recomputed
// from the Gramian in long double, on every family of fixtures.hpp.
//
// Self-contained: exits non-zero if a check failed, and prints the worst value seen of each.

#include <algorithm>
#include <bucket_moo/solve.hpp>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "fixtures.hpp"

namespace {

using namespace fixtures;
using bucket_moo::Method;

constexpr Real kEps = bucket_moo::kEpsilon;

std::map<std::string, int> seen;  // statuses by method and family

std::size_t at(int i) { return static_cast<std::size_t>(i); }

Real norm(const Gramian& g, int i) { return std::sqrt(static_cast<Real>(g(i, i))); }

/// Σ |w_k| |g_k|: what the rounding of float64 weights is relative to.
Real length(const Gramian& g, const std::vector<Real>& w) {
  Real total = 0;
  for (int i = 0; i < g.k; ++i) total += std::fabs(w[at(i)]) * norm(g, i);
  return total;
}

/// What a float64 solution can reach: `goal`, and the rounding of the weights themselves.
double reachable(double goal, Real rounding, int k) { return goal + static_cast<double>((8 + k) * kEps * rounding); }

bool starts(const std::string& text, const std::string& with) { return text.rfind(with, 0) == 0; }

/// Families without linear dependence beyond copies: all methods must find exactly what they promise.
bool regular(const std::string& family) {
  return family == "wishart" || starts(family, "common") || starts(family, "condition 1e2 ") ||
         family == "condition 1e2" || family == "condition 1e6" || starts(family, "condition 1e10") ||
         starts(family, "norms over") || family == "exact duplicates" || family == "all equal" || family == "zero rows";
}

/// Families that a float64 solution of 1e-8 must exist for.
bool easy(const std::string& family) { return regular(family) && !starts(family, "condition 1e10"); }

std::string method_name(MethodId id) { return bucket_moo::kMethodNames[static_cast<std::size_t>(id)]; }

Method of(MethodId id) { return {.id = id}; }

Answer counted(const Method& method, const std::string& family, const Gramian& g) {
  const Answer answer = solve(method, g);
  const int status = static_cast<int>(answer.solution.status);
  if (status != 0) ++seen[method_name(method.id) + " status " + std::to_string(status) + ": " + family];
  return answer;
}

/// Scale, permutation, determinism, equal treatment of copies.
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

/// GradVac as its paper has it, in long double. `phi` [K, K] in and out.
Vector gradvac_reference(const Gramian& g, const std::vector<int>& order, double beta, std::vector<Real>& phi) {
  const std::vector<int> on = active(g);
  std::vector<Real> total(at(g.k));
  for (int i : on) {
    std::vector<Real> c(at(g.k));
    c[at(i)] = 1;
    for (int t = 0; t < g.k; ++t) {
      const int j = order[at(i * g.k + t)];
      if (j == i || g(j, j) == 0) continue;
      const std::vector<Real> product = times(g, c);
      const Real size = std::sqrt(inner(c, product));
      const Real rho = std::clamp(product[at(j)] / size / norm(g, j), Real{-1}, Real{1});
      Real& target = phi[at(i * g.k + j)];
      if (rho < target) {
        c[at(j)] += size * (target * std::sqrt(1 - rho * rho) - rho * std::sqrt(1 - target * target)) /
                    (norm(g, j) * std::sqrt(1 - target * target));
      }
      target = (1 - static_cast<Real>(beta)) * target + static_cast<Real>(beta) * rho;
    }
    for (std::size_t l = 0; l < c.size(); ++l) total[l] += c[l] / static_cast<Real>(on.size());
  }
  return {total.begin(), total.end()};
}

void check_gradvac(Random& random, Worst& worst) {
  for (const int k : {1, 2, 3, 5, 8, 16, 33}) {
    std::vector<int> order;
    for (int i = 0; i < k; ++i) {
      std::vector<int> row(at(k));
      std::iota(row.begin(), row.end(), 0);
      std::shuffle(row.begin(), row.end(), random);
      order.insert(order.end(), row.begin(), row.end());
    }
    for (const double beta : {0.0, 0.1, 0.5, 1.0}) {
      Method method = of(MethodId::gradvac);
      method.gradvac.beta = beta;
      method.gradvac.permutation = order.data();
      Vector state(bucket_moo::state_size(method, k));
      check(state.size() == at(k * k), "gradvac state size");
      std::vector<Real> phi(at(k * k));
      const Gradients common = gaussian(random, 1, 2 * k + 3);
      for (int step = 0; step < 6; ++step) {
        Gradients rows = gaussian(random, k, 2 * k + 3);
        for (int i = 0; i < k; ++i) {
          for (int x = 0; x < rows.n; ++x) rows.at(i, x) += 0.7 * common.at(0, x);
          if (step == 3 && i % 3 == 1) copy_row(rows, i, i, 0.0);  // inactive for a step: its targets stay
        }
        const Gramian g = gramian(rows);
        if (step == 0 || beta == 0.0) {
          Method pcgrad = of(MethodId::pcgrad);
          pcgrad.pcgrad.permutation = order.data();
          Vector copy = state;
          check(largest_difference(solve(method, g, {}, copy.data()).weights, solve(pcgrad, g).weights) <= 1e-12,
                label("gradvac with fresh targets is PCGrad", "common component", k));
          check(largest_difference(solve(method, g).weights, solve(pcgrad, g).weights) <= 1e-12,
                label("gradvac without state is PCGrad", "common component", k));
        }
        const Vector weights = solve(method, g, {}, state.data()).weights;
        const double error = largest_difference(weights, gradvac_reference(g, order, beta, phi));
        double target = 0;
        for (std::size_t i = 0; i < phi.size(); ++i)
          target = std::max(target, static_cast<double>(std::fabs(phi[i] - static_cast<Real>(state[i]))));
        worst.add("gradvac against reference", error);
        worst.add("gradvac targets against reference", target);
        check(error <= 1e-8 && target <= 1e-9, label("gradvac", "common component", k));
        Gramian broken = g;
        broken(0, 0) = std::numeric_limits<double>::infinity();
        const Vector before = state;
        solve(method, broken, {}, state.data());
        check(state == before, "a nonfinite step leaves state alone");
      }
    }
  }
}

void check_krum(const std::string& family, const Gramian& g) {
  const std::vector<int> on = active(g);
  const int k = static_cast<int>(on.size());
  for (const int byzantine : {0, 1, 3}) {
    for (const int selected : {1, 2, 5, 100}) {
      Method method = of(MethodId::krum);
      method.krum.n_byzantine = byzantine;
      method.krum.n_selected = selected;
      const Answer answer = solve(method, g);
      if (k == 0) continue;
      const auto name = [&](const char* part) { return label(std::string("krum ") + part, family, g.k); };
      if (k < byzantine + 3) {
        check(answer.solution.status == Status::fallback, name("too few"));
        for (int i : on) check(answer.weights[at(i)] == 1.0 / k, name("too few: equal"));
        continue;
      }
      std::vector<std::pair<Real, int>> scores;
      for (int i : on) {
        std::vector<Real> distances;
        for (int j : on) {
          if (j != i)
            distances.push_back(std::max(
                Real{0}, static_cast<Real>(g(i, i)) + static_cast<Real>(g(j, j)) - 2 * static_cast<Real>(g(i, j))));
        }
        std::sort(distances.begin(), distances.end());
        scores.emplace_back(std::accumulate(distances.begin(), distances.begin() + (k - byzantine - 2), Real{0}), i);
      }
      const int m = std::min(selected, k);
      std::vector<std::pair<Real, int>> sorted = scores;
      std::sort(sorted.begin(), sorted.end());
      const Real limit = sorted[at(m - 1)].first;
      const Real slack = 64 * kEps * static_cast<Real>(k) * mean_diagonal(g) * static_cast<Real>(k);
      int chosen = 0;
      for (const auto& [score, i] : scores) {
        const bool in = answer.weights[at(i)] > 0;
        chosen += in ? 1 : 0;
        if (in) check(answer.weights[at(i)] == 1.0 / m, name("mean"));
        check(in ? score <= limit + slack : score >= limit - slack, name("the lowest scores"));
      }
      check(chosen == m, name("as many as asked for"));
    }
  }
}

/// Adasum on the gradients themselves.
std::vector<Real> adasum_reference(const std::vector<std::vector<Real>>& leaves) {
  std::vector<std::vector<Real>> level = leaves;
  while (level.size() > 1) {
    std::vector<std::vector<Real>> next;
    for (std::size_t i = 0; i < level.size(); i += 2) {
      if (i + 1 == level.size()) {
        next.push_back(level[i]);
        continue;
      }
      const Real product = inner(level[i], level[i + 1]);
      const Real first = inner(level[i], level[i]);
      const Real second = inner(level[i + 1], level[i + 1]);
      std::vector<Real> joined;
      for (std::size_t x = 0; x < level[i].size(); ++x) {
        joined.push_back((1 - product / (2 * first)) * level[i][x] + (1 - product / (2 * second)) * level[i + 1][x]);
      }
      next.push_back(joined);
    }
    level = next;
  }
  return level[0];
}

void check_adasum(Random& random, Worst& worst) {
  for (const int k : {1, 2, 3, 5, 7, 8, 16, 33, 64}) {
    for (int trial = 0; trial < 10; ++trial) {
      Gradients rows = gaussian(random, k, 2 * k + 3);
      if (trial % 2 == 1) scale_rows_over(random, rows, 4);
      std::vector<std::vector<Real>> leaves;
      for (int i = 0; i < k; ++i) {
        if (trial > 5 && i % 4 == 2) {
          copy_row(rows, i, i, 0.0);
          continue;
        }
        leaves.emplace_back();
        for (int x = 0; x < rows.n; ++x) leaves.back().push_back(static_cast<Real>(rows.at(i, x)));
      }
      const Vector w = solve(of(MethodId::adasum), gramian(rows)).weights;
      const std::vector<Real> expected = adasum_reference(leaves);
      Real error = 0;
      for (int x = 0; x < rows.n; ++x) {
        Real got = 0;
        for (int i = 0; i < k; ++i) got += static_cast<Real>(w[at(i)]) * static_cast<Real>(rows.at(i, x));
        error = std::max(error, std::fabs(got - expected[at(x)]) / std::sqrt(inner(expected, expected)));
      }
      worst.add("adasum against reference", static_cast<double>(error));
      check(static_cast<double>(error) <= 1e-12, label("adasum", "wishart", k));
    }
  }
  check(solve(of(MethodId::adasum), Gramian{2, {1, 1, 1, 1}}).weights == Vector({0.5, 0.5}),
        "adasum of copies is the mean");
  check(solve(of(MethodId::adasum), Gramian{2, {1, 0, 0, 4}}).weights == Vector({1, 1}),
        "adasum of orthogonal is the sum");
}

void check_smoothing(Random& random) {
  for (const MethodId id : {MethodId::mean, MethodId::mgda, MethodId::gradvac}) {
    const int k = 5;
    Method method = of(id);
    method.smoothing.alpha = 0.75;
    Method plain = of(id);
    Vector state(bucket_moo::state_size(method, k));
    Vector plain_state(bucket_moo::state_size(plain, k));
    check(state.size() == plain_state.size() + 2 * k, "smoothing state size");
    Vector past(at(k));
    std::vector<bool> known(at(k));
    for (int step = 0; step < 8; ++step) {
      Gradients rows = gaussian(random, k, 8);
      if (step % 3 == 0) copy_row(rows, 2, 2, 0.0);
      const Gramian g = gramian(rows);
      const Vector fresh = solve(plain, g, {}, plain_state.empty() ? nullptr : plain_state.data()).weights;
      const Vector smooth = solve(method, g, {}, state.data()).weights;
      for (int i = 0; i < k; ++i) {
        if (g(i, i) == 0) {
          check(smooth[at(i)] == fresh[at(i)], "smoothing leaves inactive objectives alone");
          continue;
        }
        const double expected = known[at(i)] ? 0.75 * past[at(i)] + 0.25 * fresh[at(i)] : fresh[at(i)];
        check(std::fabs(smooth[at(i)] - expected) <= 1e-15, "smoothing");
        past[at(i)] = expected;
        known[at(i)] = true;
      }
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

void measure_time() {
  std::printf("time per solve, microseconds (median of 9 batches of 16 Wishart Gramians), K = 2, 8, 32, 64\n");
  Random random(1);
  for (int id = 0; id < bucket_moo::kMethods; ++id) {
    const Method method = of(static_cast<MethodId>(id));
    std::printf("  %-12s", method_name(method.id).c_str());
    for (const int k : {2, 8, 32, 64}) {
      std::vector<Gramian> problems;
      for (int i = 0; i < 16; ++i) problems.push_back(gramian(gaussian(random, k, 2 * k + 3)));
      Vector weights(at(k));
      Vector scratch(bucket_moo::solve_scratch_size(k));
      std::vector<double> times;
      const int repeats = k > 8 ? 4 : 64;
      for (int batch = 0; batch < 9; ++batch) {
        const std::clock_t start = std::clock();  // of this process: the machine may be shared
        for (int repeat = 0; repeat < repeats; ++repeat) {
          for (const Gramian& g : problems) {
            bucket_moo::solve(bucket_moo::HostLanes{}, method, RandomKey{}, k, g.entries.data(), weights.data(),
                              scratch.data());
          }
        }
        times.push_back(1e6 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC / (16 * repeats));
      }
      std::sort(times.begin(), times.end());
      std::printf(" %9.2f", times[4]);
    }
    std::printf("\n");
  }
}

}  // namespace

/// Arguments: trials per family and size (default 4), or "time" for timings alone.
int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "time") {
    measure_time();
    return 0;
  }
  const int trials = argc > 1 ? std::atoi(argv[1]) : 4;
  Worst worst;
  Random random(20260110);
  check_contract(random);
  check_gradvac(random, worst);
  check_adasum(random, worst);
  check_smoothing(random);
  for (const Family& family : families()) {
    for (const int k : kSizes) {
      for (int trial = 0; trial < (k > 16 ? (trials + 2) / 3 : trials); ++trial) {
        const Gramian g = gramian(family.make(random, k));
        check_projections(family.name, g, worst);
        check_cosines(family.name, g, random, worst);
        check_aligned(family.name, g, worst);
        check_equilibria(family.name, g, worst);
        check_krum(family.name, g);
        for (int id = static_cast<int>(MethodId::upgrad); id < bucket_moo::kMethods; ++id) {
          // Ill-conditioned weights are not comparable to better than their condition number.
          const bool unique = family.unique && family.name != "condition 1e6" && family.name != "norms over 8 decades";
          check_invariants(of(static_cast<MethodId>(id)), family.name, g, unique, random, worst);
        }
      }
    }
  }
  std::printf("worst values\n");
  worst.print();
  for (const auto& [what, count] : seen) std::printf("  %-60s %d\n", what.c_str(), count);
  std::printf("%ld checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
