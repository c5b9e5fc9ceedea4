// MGDA: the shortest vector in the convex hull of the gradients. It conflicts with none of them.
//
// Source: Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization", Comptes Rendus
// Mathématique 350, 2012; Sener & Koltun, "Multi-task learning as multi-objective optimization", NeurIPS 2018, eq. 3.
#ifndef BUCKET_MOO_METHODS_MGDA_HPP
#define BUCKET_MOO_METHODS_MGDA_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/duplicates.hpp>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/linear_algebra.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/method_traits.hpp>
#include <bucket_moo/problem.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/simplex_qp.hpp>
#include <bucket_moo/solution.hpp>
#include <cmath>

namespace bucket_moo {

/// MGDA of two gradients: the point of the segment between them that is nearest to the origin. Needs a sync() before
/// the weights are read.
template <class Lanes>
BUCKET_MOO_HD void load_shortest_of_segment(Lanes lanes, const double* gram, double* weights) {
  const double first = gram[0] - gram[1];  // > 0: the second one shortens it
  const double second = gram[3] - gram[1];
  double share = second / (first + second);
  double other = first / (first + second);
  if (!(first > 0.0) || !(second > 0.0)) {
    share = gram[0] <= gram[3] ? 1.0 : 0.0;
    other = 1.0 - share;
  }
  if (lanes.lane() == 0) {
    weights[0] = share;
    weights[1] = other;
  }
}

/// w = argmin over the simplex of wᵀGw. With two gradients by a formula, in no iteration.
///
/// Where several w attain the minimum (more objectives than dimensions, say), the combination Σ w_k g_k is unique and
/// one w is returned; identical objectives share their weight equally.
///
/// Normalize::l2 solves for g_k / |g_k| instead: v, and returns w_k = (v_k / |g_k|) / Σ_l (v_l / |g_l|), so that the
/// combination is along the shortest vector in the hull of the unit gradients, without conflict, and w is on the
/// simplex.
///
/// \param k       active objectives, >= 1
/// \param gram    [k, k] symmetric, positive diagonal; overwritten under Normalize::l2
/// \param weights [k], out: on the simplex
/// \return residual = wᵀGw - min_k (Gw)_k, the duality gap relative to the mean diagonal (to the squared norm 1 of the
///         unit gradients under Normalize::l2)
template <class Lanes>
BUCKET_MOO_HD Solution solve_mgda(Lanes lanes, const MgdaOptions& options, int k, double* gram, double* weights,
                                  Scratch scratch) {
  double* const length = scratch.doubles(k);
  double* const product = scratch.doubles(k);
  const bool unit = options.normalize == Normalize::l2;
  if (unit) {
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) length[i] = std::sqrt(gram[i * k + i]);
    lanes.sync();
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) {
      BUCKET_MOO_UNROLL(2)
      for (int j = 0; j < k; ++j) gram[i * k + j] = i == j ? 1.0 : gram[i * k + j] / length[i] / length[j];
    }
    lanes.sync();
  }

  Solution solution;
  if (k == 2) {
    load_shortest_of_segment(lanes, gram, weights);
  } else {
    SimplexQp<Lanes> qp(lanes, k, gram, nullptr, 0.0, weights, scratch);
    qp.start(1.0);
    solution.iterations = qp.minimise();
  }
  share_between_duplicates(lanes, k, gram, weights, scratch);

  multiply(lanes, k, gram, weights, product);
  double square = 0.0;
  double lowest = product[0];
  double trace = 0.0;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    square += weights[i] * product[i];
    Min{lowest}.join(product[i]);
    trace += gram[i * k + i];
  }
  lanes.reduce(Sum{square}, Min{lowest}, Sum{trace});
  const double gap = square - lowest;
  solution.residual = gap > 0.0 ? gap / (trace / k) : 0.0;

  if (unit) {
    double total = 0.0;
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) {
      weights[i] /= length[i];
      total += weights[i];
    }
    total = lanes.sum(total);
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] /= total;
    lanes.sync();
  }
  return solution;
}

struct MgdaMethod : MethodTraits<MethodId::mgda> {
  static constexpr const char* kName = "MGDA";
  static constexpr int kScratchMatrices = 1;

  template <class Visitor>
  static void visit_options(Visitor& visit, Method& method) {
    visit.word("normalize", method.mgda.normalize, {{"none", Normalize::none}, {"l2", Normalize::l2}});
  }

  template <class Lanes>
  BUCKET_MOO_HD static Solution solve(Lanes lanes, const Method& method, const Problem& problem, double*,
                                      double* weights, Scratch scratch) {
    return solve_mgda(lanes, method.mgda, problem.k, problem.gram, weights, scratch);
  }
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHODS_MGDA_HPP
