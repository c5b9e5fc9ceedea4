// DualProj: the (weighted) mean gradient, projected onto the cone of updates that conflict with no objective.
//
// Source: Lopez-Paz & Ranzato, "Gradient episodic memory for continual learning", NeurIPS 2017, eq. 11.
#ifndef BUCKET_MOO_METHODS_DUALPROJ_HPP
#define BUCKET_MOO_METHODS_DUALPROJ_HPP

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

/// w = argmin {vᵀGv : v >= p}, with p the preference. The update conflicts with no objective; where p does not either,
/// w = p. Unchanged by g -> t g.
///
/// Where rounding has left nothing of a solution (out_of_proportion.hpp) the weights are MGDA's, status fallback.
/// \param weights [k], out: >= p
/// \return residual: the larger of -<g_l, d> / (|g_l| r) and of the complementarity (w - p)ᵀGw / r², with
///         r = Σ p_i |g_i|
template <class Lanes>
BUCKET_MOO_HD Solution solve_dualproj(Lanes lanes, const DualprojOptions& options, const Problem& problem,
                                      double* weights, Scratch scratch) {
  const int k = problem.k;
  double* const cosine = scratch.doubles(k * k);
  double* const inverse = scratch.doubles(k);
  double* const preference = scratch.doubles(k);
  double* const lower = scratch.doubles(k);
  double* const point = scratch.doubles(k);
  load_cosines(lanes, k, problem.gram, cosine, inverse);
  load_preference(lanes, options.preference, k, problem.objective, preference);
  BUCKET_MOO_UNROLL(1)
  for (int l = lanes.lane(); l < k; l += lanes.count()) lower[l] = inverse[l] > 0.0 ? preference[l] / inverse[l] : 0.0;

  NonnegativeQp<Lanes> qp(lanes, k, cosine, scratch);
  Solution solution;
  solution.iterations = qp.minimise(lower, point);
  solution.residual = qp.residual();
  BUCKET_MOO_UNROLL(1)
  for (int l = lanes.lane(); l < k; l += lanes.count()) weights[l] = (point[l] - lower[l]) * inverse[l];
  share_between_duplicates(lanes, k, problem.gram, weights, scratch);
  BUCKET_MOO_UNROLL(1)
  for (int l = lanes.lane(); l < k; l += lanes.count()) weights[l] += preference[l];
  lanes.sync();
  if (out_of_proportion(lanes, solution.residual, k, problem.gram, weights, preference)) {
    solution = solve_mgda(lanes, MgdaOptions{}, k, problem.gram, weights, scratch);
    solution.status = Status::fallback;
  }
  return solution;
}

struct DualprojMethod : MethodTraits<MethodId::dualproj> {
  static constexpr const char* kName = "DualProj";

  template <class Visitor>
  static void visit_options(Visitor& visit, Method& method) {
    visit.preference("preference", method.dualproj.preference);
  }

  template <class Lanes>
  BUCKET_MOO_HD static Solution solve(Lanes lanes, const Method& method, const Problem& problem, double*,
                                      double* weights, Scratch scratch) {
    return solve_dualproj(lanes, method.dualproj, problem, weights, scratch);
  }
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHODS_DUALPROJ_HPP
