// Weights in equilibrium with their gradients' progress: (Gw)_k = w_k^(-1/α), w > 0.
//
// The equilibrium is the minimiser of ½wᵀGw - Σ φ(w_k), with φ' = w^(-1/α): strictly convex, a barrier at 0. It exists
// exactly when 0 is not in the convex hull of the gradients. Damped Newton finds it, in steps relative to w, for which
// the Hessian is diag(w) G diag(w) plus a positive diagonal: well conditioned whatever G is.
//
// Source: Navon, Shamsian, Achituve, et al., "Multi-task learning as a bargaining game", ICML 2022, sec. 3.2 (α = 1);
// Ban & Ji, "Fair resource allocation in multi-task learning", ICML 2024, eq. 5. Newton: Boyd & Vandenberghe, "Convex
// optimization", 2004, 9.5 and 9.6.
#ifndef BUCKET_MOO_EQUILIBRIUM_HPP
#define BUCKET_MOO_EQUILIBRIUM_HPP

#include <bucket_moo/cholesky.hpp>
#include <bucket_moo/config.hpp>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/linear_algebra.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/solution.hpp>
#include <cmath>

namespace bucket_moo {

/// x^exponent, for x > 0; the exponents of α = 1 cost nothing.
BUCKET_MOO_HD inline double power(double x, double exponent) {
  if (exponent == 0.0) return 1.0;
  if (exponent == -1.0) return 1.0 / x;
  return std::pow(x, exponent);
}

/// Solves (Gw)_k = w_k^(-1/α).
///
/// \param alpha   > 0
/// \param k       >= 1
/// \param gram    [k, k] symmetric, positive diagonal
/// \param weights [k], out, > 0; not written without an equilibrium. Needs a sync() before they are read
/// \return residual = max_k |(Gw)_k w_k^(1/α) - 1|; status `fallback` without an equilibrium, that is where |Σ w_k g_k|
///         falls to the rounding noise of its terms, or a residual of 1e-4 is out of reach
/// Cost: some 5 to 40 Newton steps of k³/6 multiply-adds.
template <class Lanes>
BUCKET_MOO_HD Solution solve_equilibrium(Lanes lanes, double alpha, int k, const double* gram, double* weights,
                                         Scratch scratch) {
  constexpr int kMaxSteps = 300;
  constexpr int kMaxHalvings = 60;
  constexpr double kBoundary = 0.95;  // of the way to w = 0
  constexpr double kQuadratic = 0.1;  // a relative step below which whole steps converge quadratically
  constexpr double kShort = 1e-3;
  constexpr double kUseful = 1e-4;  // a larger residual is no equilibrium
  constexpr double kConverged = 1e-14;
  const double own = 1.0 - 1.0 / alpha;  // ρ = r b^own

  double* const scale = scratch.doubles(k);  // w = scale b
  double* const level = scratch.doubles(k);  // r: H b = r b^(-1/α)
  double* const b = scratch.doubles(k);
  double* const best = scratch.doubles(k);
  double* const product = scratch.doubles(k);  // b (Hb)
  double* const target = scratch.doubles(k);   // ρ
  double* const step = scratch.doubles(k);     // relative to b
  double* const moved = scratch.doubles(k);    // b (H (b step))
  double* const column = scratch.doubles(k);
  double* const h = scratch.doubles(k * k);
  Cholesky<Lanes> factor(lanes, scratch.doubles(Cholesky<Lanes>::scratch_size(k)), k);

  // Scaled so that b = 1 solves the problem of orthogonal gradients.
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    const double norm = std::sqrt(gram[i * k + i]);
    const bool seen = norm > 0.0;  // else it has underflowed
    scale[i] = !seen ? 0.0 : alpha == 1.0 ? 1.0 / norm : std::pow(norm, -2.0 * alpha / (1.0 + alpha));
    level[i] = !seen ? 1.0 : power(scale[i], own);
    b[i] = 1.0;
  }
  lanes.sync();
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    BUCKET_MOO_UNROLL(2)
    for (int j = 0; j < k; ++j) h[i * k + j] = gram[i * k + j] * scale[i] * scale[j];
    h[i * k + i] = level[i];
  }
  lanes.sync();

  Solution solution;
  solution.residual = kInfinity;
  int stalled = 0;
  bool settled = false;  // the last step was so short that only rounding can keep the residual up
  bool exists = true;
  for (int iteration = 0; iteration < kMaxSteps; ++iteration) {
    multiply(lanes, k, h, b, moved);
    double energy = 0.0;
    double length = 0.0;
    double wanted = 0.0;
    double residual = 0.0;
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) {
      product[i] = b[i] * moved[i];
      target[i] = level[i] * power(b[i], own);
      const double error = std::fabs(product[i] / target[i] - 1.0);
      Max{residual}.join(error < kInfinity ? error : kInfinity);  // a NaN is as far as can be
      energy += product[i];
      length += b[i] * std::sqrt(h[i * k + i]);
      wanted += target[i];
    }
    lanes.reduce(Max{residual}, Sum{energy}, Sum{length}, Sum{wanted});
    lanes.sync();
    exists = energy > (k + 8) * kEpsilon * length * length;
    if (!exists) break;
    if (iteration == 0) {  // the best multiple of the start
      const double multiple = power(wanted / energy, 1.0 / (1.0 + 1.0 / alpha));
      BUCKET_MOO_UNROLL(1)
      for (int i = lanes.lane(); i < k; i += lanes.count()) b[i] = multiple;
      lanes.sync();
      continue;
    }
    solution.iterations = iteration;
    if (residual < solution.residual) {
      stalled = residual > 0.5 * solution.residual && settled ? stalled + 1 : 0;
      solution.residual = residual;
      BUCKET_MOO_UNROLL(1)
      for (int i = lanes.lane(); i < k; i += lanes.count()) best[i] = b[i];
    } else if (settled) {
      ++stalled;
    }
    if (residual <= kConverged || stalled >= 3) break;

    factor.clear();
    for (int i = 0; i < k && exists; ++i) {
      for (int j = lanes.lane(); j < i; j += lanes.count()) column[j] = b[i] * h[i * k + j] * b[j];
      lanes.sync();
      exists = factor.append(column, b[i] * h[i * k + i] * b[i] + target[i] / alpha, 0.0);
    }
    if (!exists) break;  // rounding has made G indefinite: only noise keeps w from growing
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) step[i] = target[i] - product[i];
    lanes.sync();
    factor.solve(step);

    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) column[i] = b[i] * step[i];
    lanes.sync();
    multiply(lanes, k, h, column, moved);
    double slope = 0.0;
    double largest = 0.0;
    double most_negative = 0.0;
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) {
      moved[i] *= b[i];
      slope += step[i] * (product[i] - target[i]);
      const double size = std::fabs(step[i]);
      largest = size > largest ? size : largest;
      most_negative = step[i] < most_negative ? step[i] : most_negative;
    }
    lanes.reduce(Sum{slope}, Max{largest}, Min{most_negative});
    double t = most_negative < -kBoundary ? -kBoundary / most_negative : 1.0;
    // The objective is convex along the step, which may pass its minimum: to where it climbs at most half as steeply as
    // it descends at the start.
    for (int halving = 0; largest > kQuadratic && halving < kMaxHalvings; ++halving) {
      double there = 0.0;
      BUCKET_MOO_UNROLL(1)
      for (int i = lanes.lane(); i < k; i += lanes.count()) {
        there += step[i] * (product[i] + t * moved[i] - target[i] * power(1.0 + t * step[i], -1.0 / alpha));
      }
      if (lanes.sum(there) <= -0.5 * slope) break;
      t *= 0.5;
    }
    settled = largest < kShort;
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) b[i] *= 1.0 + t * step[i];
    lanes.sync();
  }

  if (!(solution.residual <= (exists ? kUseful : kEquilibriumTolerance))) {
    solution.status = Status::fallback;
    return solution;
  }
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] = best[i] * scale[i];
  return solution;
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_EQUILIBRIUM_HPP
