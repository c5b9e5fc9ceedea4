// CAGrad: the vector in a ball around the mean gradient that makes the worst objective improve most.
//
// Source: Liu, Liu, Jin, Stone, Liu, "Conflict-averse gradient descent for multi-task learning", NeurIPS 2021, eq. 3-5.
#ifndef BUCKET_MOO_METHODS_CAGRAD_HPP
#define BUCKET_MOO_METHODS_CAGRAD_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/duplicates.hpp>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/linear_algebra.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/method_traits.hpp>
#include <bucket_moo/problem.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/simplex_qp.hpp>
#include <bucket_moo/solution.hpp>
#include <cmath>

namespace bucket_moo {

/// d = argmax over |d - g_0| <= s of min_k <g_k, d>, with g_0 the mean and s = c |g_0|.
///
/// The dual is min over l on the simplex of F(l) = <g_0, g_l> + s |g_l|, and d = g_0 + (s / |g_l|) g_l. Its optimality
/// conditions are those of min over v >= 0, Σ v = μ of ½|g_0 + g_v|², with v = μ l, at the μ where |g_v| = s. That is a
/// simplex QP whose solution is piecewise linear in its mass μ, with |g_v| non-decreasing. So the root is found by
/// following the current piece to where |g_v|² = s², a quadratic equation, which ends in a few re-solves from the last
/// answer and is exact once the support is right. A bracket guards it.
///
/// No root exists when the gradients have 0 in their convex hull and no d does better than 0 for all. Then d is the
/// nearest to g_0 among the optima, at the end of the path, instead of the 0/0 of the formula.
///
/// `rescale` divides by 1 + c: agreeing gradients then give exactly their mean. (The authors' code calls this mode 2;
/// its mode 1 divides by 1 + c².)
///
/// \param k       active objectives, >= 1
/// \param gram    [k, k] symmetric, positive diagonal
/// \param weights [k], out: w = u + v, of sum 1 + μ (before rescaling)
/// \return residual = (F(l) - min_k (Gw)_k) / |g_0|², the primal-dual gap, before rescaling. With no root the optimum
///         is 0, and F(l) counts as 0.
template <class Lanes>
BUCKET_MOO_HD Solution solve_cagrad(Lanes lanes, const CagradOptions& options, int k, const double* gram,
                                    double* weights, Scratch scratch) {
  constexpr int kMaxSteps = 100;
  // Beyond the mass where Σ v_k |g_k| is s / kShortest, the rounding of v moves d by more than a larger mass gains.
  constexpr double kShortest = 1e-8;
  // Where (Σ v_k |g_k|)² is this much larger than |g_v|², that is computed in twice the precision; so is |g_0|².
  constexpr double kCancels = 1e3;

  double* const product = scratch.doubles(k);  // b = Gu, so b_k = <g_k, g_0>
  double* const v = scratch.doubles(k);
  double* const rate = scratch.doubles(k);  // dv / dμ
  double* const image = scratch.doubles(k);
  double* const rate_image = scratch.doubles(k);
  double* const spare = scratch.doubles(k);

  const double u = 1.0 / k;
  double length = 0.0;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    length += u * std::sqrt(gram[i * k + i]);
    weights[i] = u;
  }
  length = lanes.sum(length);
  lanes.sync();
  multiply(lanes, k, gram, weights, product);
  double mean_square = dot(lanes, k, weights, product);  // |g_0|²
  if (length * length > kCancels * mean_square) {
    mean_square = precise_quadratic_form(lanes, k, gram, weights, image, spare);
  }
  Solution solution;
  const bool vanishes = !(mean_square > (k + 8) * kEpsilon * length * length);
  if (vanishes || !(options.c > 0.0)) return solution;

  const double square = options.c * options.c * mean_square;  // s²
  const double radius = std::sqrt(square);

  SimplexQp<Lanes> qp(lanes, k, gram, product, length, v, scratch);
  // Where the path starts, at mass 0, the mass sits on the vertex with the smallest b.
  Located start{kInfinity, k};
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    const Located candidate{product[i], i};
    start = comes_before(candidate, start) ? candidate : start;
  }
  const int first = lanes.argmin(start).index;
  qp.start(radius / std::sqrt(gram[first * k + first]));

  double low = 0.0;  // |g_v| < s
  double high = kInfinity;
  double v_square = 0.0;
  bool root = false;
  for (int step = 0; step < kMaxSteps; ++step) {
    solution.iterations += qp.minimise();
    const double mass = qp.mass();
    multiply(lanes, k, gram, v, image);
    double summed = 0.0;
    v_square = 0.0;
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) {
      summed += v[i] * std::sqrt(gram[i * k + i]);
      v_square += v[i] * image[i];
    }
    lanes.reduce(Sum{summed}, Sum{v_square});
    const double largest_mass = mass * (radius / (kShortest * summed));
    if (summed * summed > kCancels * square) {
      v_square = precise_quadratic_form(lanes, k, gram, v, rate, spare);
    }
    // What the rounding of v alone does to |g_v|².
    root = std::fabs(v_square - square) <= 4.0 * kEpsilon * (square + summed * radius);
    if (root) break;
    if (v_square < square) {
      low = mass;
    } else {
      high = mass;
    }

    // |g_v + t g_q|² = s² along this piece: curvature t² + 2 half_slope t + (v_square - square) = 0.
    qp.minimise_affine(rate);
    multiply(lanes, k, gram, rate, rate_image);
    double half_slope = 0.0;
    double curvature = 0.0;
    double spread = 0.0;
    double end = kInfinity;  // where the piece ends
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) {
      half_slope += rate[i] * image[i];
      curvature += rate[i] * rate_image[i];
      spread += std::fabs(rate[i]) * std::sqrt(gram[i * k + i]);
      if (rate[i] < 0.0) {
        const double at = -v[i] / rate[i];
        end = at < end ? at : end;
      }
    }
    lanes.reduce(Sum{half_slope}, Sum{curvature}, Sum{spread}, Min{end});
    const double excess = v_square - square;
    const double discriminant = half_slope * half_slope - curvature * excess;
    const bool flat = !(curvature > (k + 8) * kEpsilon * spread * spread);
    if (flat && high == kInfinity && (end == kInfinity || mass + end > largest_mass)) break;  // |g_v| stays below s
    double next = kInfinity;
    if (!flat && discriminant >= 0.0) {
      // The larger root, in the form that does not cancel.
      const double size = std::fabs(half_slope) + std::sqrt(discriminant);
      next = mass + (half_slope <= 0.0 ? size / curvature : -excess / size);
    } else if (high == kInfinity) {
      next = 2.0 * (mass + end);
    }
    if (next > largest_mass && high == kInfinity) next = largest_mass;
    if (!(next > low && next < high)) next = 0.5 * (low + high);
    if (!(next > low && next < high)) break;  // the bracket has closed
    qp.set_mass(next);
  }

  share_between_duplicates(lanes, k, gram, v, scratch);
  // The ball is a bound that callers rely on: on its boundary at a root, never outside.
  const bool bounded = root || v_square > square;
  const double onto = bounded && v_square > 0.0 ? radius / std::sqrt(v_square) : 1.0;
  const double divisor = options.rescale ? 1.0 + options.c : 1.0;
  double* const combined = rate;  // the weights before rescaling
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    combined[i] = u + onto * v[i];
    weights[i] = combined[i] / divisor;
  }
  lanes.sync();

  multiply(lanes, k, gram, combined, image);
  double optimum = 0.0;
  if (bounded) optimum = dot(lanes, k, v, image) / qp.mass();  // F(l) = <g_l, d>
  const double gap = (optimum - smallest(lanes, k, image)) / mean_square;
  solution.residual = gap > 0.0 ? gap : 0.0;
  return solution;
}

struct CagradMethod : MethodTraits<MethodId::cagrad> {
  static constexpr const char* kName = "CAGrad";
  static constexpr int kScratchMatrices = 1;

  template <class Visitor>
  static void visit_options(Visitor& visit, Method& method) {
    visit.at_least_zero("c", method.cagrad.c);
    visit.flag("rescale", method.cagrad.rescale);
  }

  template <class Lanes>
  BUCKET_MOO_HD static Solution solve(Lanes lanes, const Method& method, const Problem& problem, double*,
                                      double* weights, Scratch scratch) {
    return solve_cagrad(lanes, method.cagrad, problem.k, problem.gram, weights, scratch);
  }
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHODS_CAGRAD_HPP
