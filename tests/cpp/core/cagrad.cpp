// CAGrad: its ball, a bound from above on the optimum, scale, permutation.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "core/checks.hpp"

namespace core_checks {

void check_cagrad(const std::string& family, const Gramian& g, double c, bool unique, Random& random, Worst& worst) {
  const auto name = [&](const char* what) { return label(what, family, g.k) + " c=" + std::to_string(c); };
  const std::vector<int> on = active(g);
  if (on.empty()) return;
  const Answer answer = solve(cagrad(c), g);
  const Real share = 1 / static_cast<Real>(on.size());
  std::vector<Real> u(static_cast<std::size_t>(g.k));
  for (int i : on) u[static_cast<std::size_t>(i)] = share;
  const std::vector<Real> b = times(g, u);
  const Real mean_square = inner(u, b);
  const std::vector<Real> w = extended(answer.weights);
  for (int i = 0; i < g.k; ++i) {
    if (g(i, i) == 0) check(answer.weights[static_cast<std::size_t>(i)] == 0.0, name("cagrad zero row"));
    check(w[static_cast<std::size_t>(i)] >= u[static_cast<std::size_t>(i)] - 1e-15L, name("cagrad w >= u"));
  }
  if (static_cast<double>(mean_square / mean_diagonal(g)) < 1e-12) return;  // the mean vanishes: tested on its own

  std::vector<Real> v(w.size());
  Real mass = 0;
  for (std::size_t i = 0; i < v.size(); ++i) {
    v[i] = w[i] - u[i];
    mass += v[i];
  }
  const Real radius = static_cast<Real>(c) * std::sqrt(mean_square);
  const Real moved = std::sqrt(std::max(Real{0}, inner(v, times(g, v))));

  // Any l on the simplex bounds the optimum from above: take the better of v / mass and MGDA's weights. A squared norm
  // below the rounding of the entries of G counts as zero: its root would not.
  const auto bound = [&](const std::vector<Real>& l) {
    Real length = 0;
    for (int i : on) length += l[static_cast<std::size_t>(i)] * std::sqrt(static_cast<Real>(g(i, i)));
    const Real square = inner(l, times(g, l)) - 4 * static_cast<Real>(bucket_moo::kEpsilon) * length * length;
    return inner(l, b) + radius * std::sqrt(std::max(Real{0}, square));
  };
  Real above = bound(extended(solve(mgda(), g).weights));
  if (mass > 0) {
    std::vector<Real> l = v;
    for (Real& x : l) x /= mass;
    above = std::min(above, bound(l));
  }
  const std::vector<Real> product = times(g, w);
  Real lowest = std::numeric_limits<Real>::infinity();
  for (int i : on) lowest = std::min(lowest, product[static_cast<std::size_t>(i)]);
  const auto gap = static_cast<double>((above - lowest) / mean_square);
  // Writing w down in float64 moves Gw by this much: weights are huge where the hull nearly contains 0.
  Real length = 0;
  for (int i : on) length += w[static_cast<std::size_t>(i)] * std::sqrt(static_cast<Real>(g(i, i)));
  const auto rounding =
      static_cast<double>(static_cast<Real>(bucket_moo::kEpsilon) * length * std::sqrt(mean_diagonal(g)) / mean_square);
  const double outside = static_cast<double>(moved / std::sqrt(mean_square)) - c;
  check(outside <= 1e-9 + 8 * rounding * static_cast<double>(std::sqrt(mean_square / mean_diagonal(g))),
        name("cagrad ball"));
  worst.add("cagrad |d - g_0| / |g_0| - c: " + family, outside);
  const std::string at = c < 1 ? " c<1: " : " c>=1: ";
  worst.add("cagrad gap / |g_0|^2" + at + family, gap);
  worst.add("cagrad gap less rounding of w" + at + family, gap - (32 + g.k) * rounding);
  worst.add("cagrad iterations: " + family, answer.solution.iterations);
  const double allowed = 1e-9 + (32 + g.k) * rounding;
  check(gap <= allowed, name("cagrad gap"));
  check(answer.solution.residual <= allowed, name("cagrad certificate"));
  check((answer.solution.status == Status::ok) == (answer.solution.residual <= 1e-9), name("cagrad status"));
  if (c >= 1) check(static_cast<double>(lowest / mean_square) >= -allowed, name("cagrad no conflict"));
  if (c < 1) check(inner(w, product) > 0, name("cagrad d != 0"));

  check(solve(cagrad(c), g).weights == answer.weights, name("cagrad deterministic"));
  check(solve(cagrad(c), scaled(g, 0x1p-40)).weights == answer.weights, name("cagrad scale, to the bit"));
  for (const double t : {1e-12, 1e12}) {
    const Answer other = solve(cagrad(c), scaled(g, t));
    if (unique)
      check(largest_difference(other.weights, answer.weights) <= 1e-7 * (1 + static_cast<double>(mass)),
            name("cagrad scale"));
  }
  std::vector<int> order(static_cast<std::size_t>(g.k));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  const Answer other = solve(cagrad(c), permuted(g, order));
  Vector back(answer.weights.size());
  for (std::size_t i = 0; i < back.size(); ++i) back[static_cast<std::size_t>(order[i])] = other.weights[i];
  if (unique)
    check(largest_difference(back, answer.weights) <= 1e-7 * (1 + static_cast<double>(mass)),
          name("cagrad permutation"));

  const Answer smaller = solve(cagrad(c, true), g);
  double error = 0;
  for (std::size_t i = 0; i < back.size(); ++i) {
    error = std::max(error, std::fabs(smaller.weights[i] * (1 + c) - answer.weights[i]) / (1 + answer.weights[i]));
  }
  check(error <= 1e-14, name("cagrad rescale"));
}

}  // namespace core_checks
