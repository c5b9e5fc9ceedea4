// FairGrad: α-fair allocation of progress between the objectives.
//
// Source: Ban & Ji, "Fair resource allocation in multi-task learning", ICML 2024, eq. 5.
#ifndef BUCKET_MOO_METHODS_FAIRGRAD_HPP
#define BUCKET_MOO_METHODS_FAIRGRAD_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/duplicates.hpp>
#include <bucket_moo/equilibrium.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/method_traits.hpp>
#include <bucket_moo/methods/mgda.hpp>
#include <bucket_moo/problem.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/solution.hpp>
#include <cmath>

namespace bucket_moo {

/// (Gw)_k = w_k^(-1/α): α -> 0 is the sum of the gradients, 1 the bargaining solution, α -> ∞ max-min fairness.
///
/// Scale: g -> t g gives w -> t^(-2α/(1+α)) w and d -> t^((1-α)/(1+α)) d. Unscale gradients first. Conflicts with no
/// objective.
///
/// Fallback: with 0 in the convex hull of the gradients, to rounding, there is no solution; w is MGDA's.
///
/// \param weights [k], out, for gradients that are not multiplied by problem.unit
/// \return residual = max_k |(Gw)_k w_k^(1/α) - 1|
template <class Lanes>
BUCKET_MOO_HD Solution solve_fairgrad(Lanes lanes, const FairgradOptions& options, const Problem& problem,
                                      double* weights, Scratch scratch) {
  const int k = problem.k;
  const double alpha = options.alpha > 0.0 && options.alpha <= kLargest ? options.alpha : 1.0;
  Solution solution = solve_equilibrium(lanes, alpha, k, problem.gram, weights, scratch);
  if (solution.status == Status::fallback) {
    solution = solve_mgda(lanes, MgdaOptions{}, k, problem.gram, weights, scratch);
    solution.status = Status::fallback;
    return solution;
  }
  share_between_duplicates(lanes, k, problem.gram, weights, scratch);
  const double scale = alpha == 1.0 ? std::sqrt(problem.unit) : std::pow(problem.unit, 1.0 / (1.0 + 1.0 / alpha));
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] *= scale;
  lanes.sync();
  return solution;
}

struct FairgradMethod : MethodTraits<MethodId::fairgrad> {
  static constexpr const char* kName = "FairGrad";
  static constexpr double kTolerance = kEquilibriumTolerance;

  template <class Visitor>
  static void visit_options(Visitor& visit, Method& method) {
    visit.positive("alpha", method.fairgrad.alpha);
  }

  template <class Lanes>
  BUCKET_MOO_HD static Solution solve(Lanes lanes, const Method& method, const Problem& problem, double*,
                                      double* weights, Scratch scratch) {
    return solve_fairgrad(lanes, method.fairgrad, problem, weights, scratch);
  }
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHODS_FAIRGRAD_HPP
