// UPGrad: each gradient is projected onto the cone of updates that conflict with none, then the projections are added.
//
// Source: Quinton & Rey, "Jacobian descent for multi-objective optimization", 2024, sec. 3.2.
#ifndef BUCKET_MOO_METHODS_UPGRAD_HPP
#define BUCKET_MOO_METHODS_UPGRAD_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/cosines.hpp>
#include <bucket_moo/duplicates.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/method_traits.hpp>
#include <bucket_moo/methods/mgda.hpp>
#include <bucket_moo/nonnegative_qp.hpp>
#include <bucket_moo/out_of_proportion.hpp>
#include <bucket_moo/preference.hpp>
#include <bucket_moo/problem.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/solution.hpp>

namespace bucket_moo {

/// w = Σ_i argmin {vᵀGv : v >= p_i e_i}, with p the preference. The update conflicts with no objective; without
/// conflicting pairs w = p.
///
/// Solved over the unit gradients, so that norms of any spread cost no accuracy. Unchanged by g -> t g.
/// Where rounding has left nothing of a solution (out_of_proportion.hpp) the weights are MGDA's, status fallback.
/// \param weights [k], out: >= p
/// \return residual: over all i, the largest of -<g_l, d_i> / (|g_l| |p_i g_i|) and of the complementarity
///         (v - p_i e_i)ᵀGv / |p_i g_i|²
/// Cost: k programmes of O(k²) per change of support.
template <class Lanes>
BUCKET_MOO_HD Solution solve_upgrad(Lanes lanes, const UpgradOptions& options, const Problem& problem, double* weights,
                                    Scratch scratch) {
  const int k = problem.k;
  const double* const gram = problem.gram;
  double* const cosine = scratch.doubles(k * k);
  double* const inverse = scratch.doubles(k);
  double* const preference = scratch.doubles(k);
  double* const lower = scratch.doubles(k);
  double* const point = scratch.doubles(k);
  load_cosines(lanes, k, gram, cosine, inverse);
  load_preference(lanes, options.preference, k, problem.objective, preference);
  BUCKET_MOO_UNROLL(1)
  for (int l = lanes.lane(); l < k; l += lanes.count()) weights[l] = 0.0;

  NonnegativeQp<Lanes> qp(lanes, k, cosine, scratch);
  Solution solution;
  for (int i = 0; i < k; ++i) {
    const double size = inverse[i] > 0.0 ? preference[i] / inverse[i] : 0.0;  // |p_i g_i|
    if (size == 0.0) continue;
    BUCKET_MOO_UNROLL(1)
    for (int l = lanes.lane(); l < k; l += lanes.count()) lower[l] = l == i ? 1.0 : 0.0;  // minimise() syncs
    solution.iterations += qp.minimise(lower, point);
    const double residual = qp.residual();
    solution.residual = residual > solution.residual ? residual : solution.residual;
    BUCKET_MOO_UNROLL(1)
    for (int l = lanes.lane(); l < k; l += lanes.count()) weights[l] += size * (point[l] - lower[l]) * inverse[l];
  }

  share_between_duplicates(lanes, k, gram, weights, scratch);
  BUCKET_MOO_UNROLL(1)
  for (int l = lanes.lane(); l < k; l += lanes.count()) weights[l] += preference[l];
  lanes.sync();
  if (out_of_proportion(lanes, solution.residual, k, gram, weights, preference)) {
    solution = solve_mgda(lanes, MgdaOptions{}, k, problem.gram, weights, scratch);
    solution.status = Status::fallback;
  }
  return solution;
}

struct UpgradMethod : MethodTraits<MethodId::upgrad> {
  static constexpr const char* kName = "UPGrad";

  template <class Visitor>
  static void visit_options(Visitor& visit, Method& method) {
    visit.preference("preference", method.upgrad.preference);
  }

  template <class Lanes>
  BUCKET_MOO_HD static Solution solve(Lanes lanes, const Method& method, const Problem& problem, double*,
                                      double* weights, Scratch scratch) {
    return solve_upgrad(lanes, method.upgrad, problem, weights, scratch);
  }
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHODS_UPGRAD_HPP
