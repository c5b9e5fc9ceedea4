// ConFIG: the update that has the same cosine with every gradient, as long as the gradients agree with it.
//
// Source: Liu, Chu, Thuerey, "ConFIG: towards conflict-free training of physics informed neural networks", ICLR 2025,
// eq. 2-4.
#ifndef BUCKET_MOO_METHODS_CONFIG_HPP
#define BUCKET_MOO_METHODS_CONFIG_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/cosine_system.hpp>
#include <bucket_moo/cosines.hpp>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/linear_algebra.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/method_traits.hpp>
#include <bucket_moo/preference.hpp>
#include <bucket_moo/problem.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/solution.hpp>

namespace bucket_moo {

/// w = (nᵀCv / vᵀCv) D⁻¹v with v = C⁺p; n (on the diagonal of D) the norms, C the cosines, p the preference. So d is
/// the projection of the *sum* of the gradients onto a direction whose cosines with them are in proportion to p: about
/// K times as long as a mean. Conflicts with no objective. Unchanged by g -> t g.
///
/// Fallback: where no direction has these cosines (0 in the hull of the unit gradients, say), w is the formula's: the
/// nearest in least squares, which may conflict; 0 where that vanishes.
///
/// \param weights [k], out
/// \return residual: the largest error of a cosine <g_k, d> / (|g_k| |d|)
template <class Lanes>
BUCKET_MOO_HD Solution solve_config(Lanes lanes, const ConfigOptions& options, const Problem& problem, double* weights,
                                    Scratch scratch) {
  const int k = problem.k;
  double* const cosine = problem.gram;  // in place: the eigensolver needs the room
  double* const inverse = scratch.doubles(k);
  double* const target = scratch.doubles(k);
  double* const image = scratch.doubles(k);
  load_cosines(lanes, k, problem.gram, cosine, inverse);
  load_preference(lanes, options.preference, k, problem.objective, target);
  const CosineSolution found = solve_cosine_system(lanes, k, cosine, target, weights, image, scratch);

  Solution solution;
  solution.residual = found.residual;
  if (!found.exact) solution.status = Status::fallback;
  double product = 0.0;  // <Σ g_k, Σ v_k g_k / |g_k|>
  double length = 0.0;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    if (inverse[i] > 0.0) product += image[i] / inverse[i];
    length += std::fabs(weights[i]);
  }
  lanes.reduce(Sum{product}, Sum{length});
  const bool vanishes = !(found.square > (k + 8) * kEpsilon * length * length);
  if (vanishes && !found.exact) product = 0.0;
  const double factor = product != 0.0 ? product / found.square : 0.0;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] *= factor * inverse[i];
  lanes.sync();
  return solution;
}

struct ConfigMethod : MethodTraits<MethodId::config> {
  static constexpr const char* kName = "ConFIG";
  static constexpr int kScratchMatrices = 3;

  template <class Visitor>
  static void visit_options(Visitor& visit, Method& method) {
    visit.preference("preference", method.config.preference);
  }

  template <class Lanes>
  BUCKET_MOO_HD static Solution solve(Lanes lanes, const Method& method, const Problem& problem, double*,
                                      double* weights, Scratch scratch) {
    return solve_config(lanes, method.config, problem, weights, scratch);
  }
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHODS_CONFIG_HPP
