// MGDA: gap, simplex, scale, permutation, unit gradients.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "core/checks.hpp"

namespace core_checks {

void check_mgda(const std::string& family, const Gramian& g, bool unique, Random& random, Worst& worst) {
  const auto name = [&](const char* what) { return label(what, family, g.k); };
  const std::vector<int> on = active(g);
  const Answer answer = solve(mgda(), g);
  if (on.empty()) {
    check(answer.solution.status == Status::inactive, name("all zero: inactive"));
    check(answer.weights == Vector(answer.weights.size(), 0.0), name("all zero: weights zero"));
    return;
  }
  check(answer.solution.status == Status::ok, name("mgda status"));
  check(answer.solution.active == static_cast<int>(on.size()), name("mgda active"));

  const std::vector<Real> w = extended(answer.weights);
  const std::vector<Real> product = times(g, w);
  const Real square = inner(w, product);
  const Real scale = mean_diagonal(g);
  Real lowest = std::numeric_limits<Real>::infinity();
  Real shortest = std::numeric_limits<Real>::infinity();
  Real unbalanced = 0;
  Real sum = 0;
  for (int i = 0; i < g.k; ++i) {
    const auto at = static_cast<std::size_t>(i);
    sum += w[at];
    check(answer.weights[at] >= 0.0, name("mgda weights >= 0"));
    if (g(i, i) == 0) check(answer.weights[at] == 0.0, name("zero row: weight zero"));
    if (g(i, i) > 0) {
      lowest = std::min(lowest, product[at]);
      shortest = std::min(shortest, static_cast<Real>(g(i, i)));
    }
    if (answer.weights[at] > 0) unbalanced = std::max(unbalanced, std::fabs(product[at] - square));
  }
  const auto gap = static_cast<double>((square - lowest) / scale);
  check(gap <= 1e-9, name("mgda gap"));
  check(static_cast<double>(unbalanced / scale) <= 1e-9, name("mgda equality on the support"));
  check(std::fabs(static_cast<double>(sum) - 1.0) <= 1e-14, name("mgda sum"));
  check(square <= shortest * (1 + 1e-12L), name("mgda shorter than every gradient"));
  worst.add("mgda gap / mean diagonal: " + family, gap);
  worst.add("mgda gap / shortest gradient^2: " + family, static_cast<double>((square - lowest) / shortest));
  worst.add("mgda iterations: " + family, answer.solution.iterations);

  check(solve(mgda(), g).weights == answer.weights, name("mgda deterministic"));

  for (const double t : {1e-12, 1e-3, 1e12}) {
    const Answer other = solve(mgda(), scaled(g, t));
    check(other.solution.status == Status::ok, name("mgda scaled status"));
    if (unique) check(largest_difference(other.weights, answer.weights) <= 1e-8, name("mgda scale"));
  }
  check(solve(mgda(), scaled(g, 0x1p-40)).weights == answer.weights, name("mgda scale by a power of two, to the bit"));

  std::vector<int> order(static_cast<std::size_t>(g.k));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  const Answer other = solve(mgda(), permuted(g, order));
  Vector back(answer.weights.size());
  for (std::size_t i = 0; i < back.size(); ++i) back[static_cast<std::size_t>(order[i])] = other.weights[i];
  std::vector<Real> difference(w.size());
  for (std::size_t i = 0; i < w.size(); ++i) difference[i] = static_cast<Real>(back[i]) - w[i];
  const Real moved = inner(difference, times(g, difference));  // |d - d'|^2
  // Squared norms are known no better than the entries of G.
  check(static_cast<double>(moved / scale) <= 64 * bucket_moo::kEpsilon, name("mgda update under permutation"));
  if (unique) {
    const double apart = largest_difference(back, answer.weights);
    worst.add("mgda weights under permutation: " + family, apart);
    check(apart <= 1e-8, name("mgda permutation"));
  }

  for (int i = 0; i < g.k; ++i) {
    for (int j = 0; j < i; ++j) {
      bool same = true;
      for (int l = 0; l < g.k && same; ++l) same = g(i, l) == g(j, l);
      if (same) {
        check(answer.weights[static_cast<std::size_t>(i)] == answer.weights[static_cast<std::size_t>(j)],
              name("mgda equal rows, equal weights"));
      }
    }
  }

  const Answer indefinite = solve(mgda(), rounded(g));
  const std::vector<Real> v = extended(indefinite.weights);
  const std::vector<Real> image = times(rounded(g), v);
  lowest = std::numeric_limits<Real>::infinity();
  for (int i : on) lowest = std::min(lowest, image[static_cast<std::size_t>(i)]);
  const auto rough = static_cast<double>((inner(v, image) - lowest) / scale);
  worst.add("mgda gap, Gramian rounded to float32", rough);
  check(rough <= 1e-9, name("mgda gap, float32 Gramian"));

  // Unit gradients: optimal for the cosines, after undoing the division.
  bucket_moo::Method unit = mgda();
  unit.mgda.normalize = bucket_moo::Normalize::l2;
  const Answer cosine = solve(unit, g);
  check(cosine.solution.status == Status::ok, name("mgda l2 status"));
  std::vector<Real> share(w.size());
  Real total = 0;
  for (int i : on) {
    const auto at = static_cast<std::size_t>(i);
    share[at] = static_cast<Real>(cosine.weights[at]) * std::sqrt(static_cast<Real>(g(i, i)));
    total += share[at];
  }
  Real unit_square = 0;
  Real unit_lowest = std::numeric_limits<Real>::infinity();
  for (int i : on) {
    Real row = 0;
    for (int j : on) {
      row += static_cast<Real>(g(i, j)) / std::sqrt(static_cast<Real>(g(i, i)) * static_cast<Real>(g(j, j))) *
             share[static_cast<std::size_t>(j)] / total;
    }
    unit_square += share[static_cast<std::size_t>(i)] / total * row;
    unit_lowest = std::min(unit_lowest, row);
  }
  worst.add("mgda l2 gap", static_cast<double>(unit_square - unit_lowest));
  check(static_cast<double>(unit_square - unit_lowest) <= 1e-9, name("mgda l2 gap"));
}

}  // namespace core_checks
