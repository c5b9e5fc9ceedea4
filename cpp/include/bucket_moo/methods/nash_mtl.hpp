// Nash-MTL: the bargaining solution, in which every objective's relative gain is traded off equally.
//
// Source: Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik, Fetaya, "Multi-task learning as a bargaining game",
// ICML 2022.
#ifndef BUCKET_MOO_METHODS_NASH_MTL_HPP
#define BUCKET_MOO_METHODS_NASH_MTL_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/duplicates.hpp>
#include <bucket_moo/equilibrium.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/linear_algebra.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/method_traits.hpp>
#include <bucket_moo/methods/mgda.hpp>
#include <bucket_moo/problem.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/solution.hpp>
#include <cmath>

namespace bucket_moo {

/// (Gw)_k = 1 / w_k, then w is shortened so that |d| <= max_norm. Stateless: w depends on G alone.
///
/// Before the clip |d|² = Σ w_k (Gw)_k = K, the number of active objectives, whatever the gradients: d is a direction.
/// Scale: g -> t g gives w -> w / t and the same d, so gradients need not be unscaled for d's sake. Conflicts with no
/// objective.
///
/// Fallback: with 0 in the convex hull of the gradients, to rounding, there is no solution; w is MGDA's, |d| <=
/// max_norm too.
///
/// \param weights [k], out, for gradients that are not multiplied by problem.unit
/// \return residual = max_k |w_k (Gw)_k - 1|, before the clip
template <class Lanes>
BUCKET_MOO_HD Solution solve_nash_mtl(Lanes lanes, const NashMtlOptions& options, const Problem& problem,
                                      double* weights, Scratch scratch) {
  const int k = problem.k;
  Solution solution = solve_equilibrium(lanes, 1.0, k, problem.gram, weights, scratch);
  double scale = std::sqrt(problem.unit);  // w ~ G^(-1/2)
  if (solution.status == Status::fallback) {
    solution = solve_mgda(lanes, MgdaOptions{}, k, problem.gram, weights, scratch);
    solution.status = Status::fallback;
    scale = 1.0;
  } else {
    share_between_duplicates(lanes, k, problem.gram, weights, scratch);
  }

  double* const product = scratch.doubles(k);
  multiply(lanes, k, problem.gram, weights, product);
  const double square = dot(lanes, k, weights, product);
  const double norm = std::sqrt(square > 0.0 ? square : 0.0) * (scale / std::sqrt(problem.unit));
  if (options.max_norm > 0.0 && norm > options.max_norm) scale *= options.max_norm / norm;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] *= scale;
  lanes.sync();
  return solution;
}

struct NashMtlMethod : MethodTraits<MethodId::nash_mtl> {
  static constexpr const char* kName = "NashMTL";
  static constexpr double kTolerance = kEquilibriumTolerance;

  template <class Visitor>
  static void visit_options(Visitor& visit, Method& method) {
    visit.at_least_zero("max_norm", method.nash_mtl.max_norm);
  }

  template <class Lanes>
  BUCKET_MOO_HD static Solution solve(Lanes lanes, const Method& method, const Problem& problem, double*,
                                      double* weights, Scratch scratch) {
    return solve_nash_mtl(lanes, method.nash_mtl, problem, weights, scratch);
  }
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHODS_NASH_MTL_HPP
