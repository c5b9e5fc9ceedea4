// Aligned-MTL: the gradients are made orthogonal and equally long, as near to what they were as that allows, then
// added.
//
// Source: Senushkin, Patakin, Kuznetsov, Konushin, "Independent component alignment for multi-task learning", CVPR
// 2023, algorithm 1.
#ifndef BUCKET_MOO_METHODS_ALIGNED_MTL_HPP
#define BUCKET_MOO_METHODS_ALIGNED_MTL_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/linear_algebra.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/method_traits.hpp>
#include <bucket_moo/preference.hpp>
#include <bucket_moo/problem.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/solution.hpp>
#include <bucket_moo/symmetric_eigen.hpp>
#include <cmath>

namespace bucket_moo {

/// The eigenvalue that the aligned gradients are scaled to, among those above `floor`.
template <class Lanes>
BUCKET_MOO_HD double alignment_scale(Lanes lanes, ScaleMode mode, int k, const double* values, double floor) {
  double lowest = kInfinity;
  double total = 0.0;
  double kept = 0.0;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    if (!(values[i] > floor)) continue;
    lowest = values[i] < lowest ? values[i] : lowest;
    total += values[i];
    kept += 1.0;
  }
  lanes.reduce(Min{lowest}, Sum{total}, Sum{kept});
  if (mode == ScaleMode::mean) return total / kept;
  if (mode != ScaleMode::median) return lowest;
  const int wanted = (static_cast<int>(kept) - 1) / 2;
  double median = kInfinity;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    if (!(values[i] > floor)) continue;
    int smaller = 0;
    for (int j = 0; j < k; ++j) {
      smaller += values[j] > floor && (values[j] < values[i] || (values[j] == values[i] && j < i)) ? 1 : 0;
    }
    if (smaller == wanted) median = values[i];
  }
  return lanes.min(median);
}

/// w = B p with B = √scale G^{+1/2} and p the preference: the columns of JᵀB are orthogonal with norm √scale, or zero.
///
/// The scale is the smallest, median or mean eigenvalue of those kept: above K·2⁻²³ of the largest. What a smaller one
/// belongs to is rounding noise of float32 gradients. Unchanged by g -> t g. May conflict.
///
/// Fallback: without a positive eigenvalue, which no Gramian lacks, w = p.
///
/// \param weights [k], out
/// \return residual = max |B G w - scale P p| / (scale max p) in the eigenbasis, P the projection onto the eigenvectors
///         kept: how far the singular values are from √scale, as seen from p
template <class Lanes>
BUCKET_MOO_HD Solution solve_aligned_mtl(Lanes lanes, const AlignedMtlOptions& options, const Problem& problem,
                                         double* weights, Scratch scratch) {
  const int k = problem.k;
  double* const matrix = scratch.doubles(k * k);
  double* const image = scratch.doubles(k);
  double* const expected = scratch.doubles(k);
  for (int i = lanes.lane(); i < k * k; i += lanes.count()) matrix[i] = problem.gram[i];
  load_preference(lanes, options.preference, k, problem.objective, weights);
  SymmetricEigen<Lanes> eigen(lanes, k, matrix, scratch);
  Solution solution;

  double heaviest = 0.0;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) heaviest = weights[i] > heaviest ? weights[i] : heaviest;
  heaviest = lanes.max(heaviest);
  const bool complete = eigen.factorise(weights);
  const double* const values = eigen.values();
  double largest = 0.0;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) largest = values[i] > largest ? values[i] : largest;
  largest = lanes.max(largest);
  if (!(largest > 0.0)) {  // not a Gramian: it has a positive trace
    load_preference(lanes, options.preference, k, problem.objective, weights);
    solution.status = Status::fallback;
    return solution;
  }
  const double floor = k * kFloatEpsilon * largest;
  const double scale = alignment_scale(lanes, options.scale_mode, k, values, floor);

  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    weights[i] = values[i] > floor ? weights[i] * std::sqrt(scale / values[i]) : 0.0;
    expected[i] = weights[i];
  }
  lanes.sync();
  eigen.from_eigenbasis(weights);
  multiply(lanes, k, problem.gram, weights, image);
  eigen.to_eigenbasis(image);
  double error = 0.0;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    if (!(values[i] > floor)) continue;
    // Both sides of BGw = scale Pp, times √(λ / scale)
    const double difference = std::fabs(image[i] - values[i] * expected[i]) * std::sqrt(scale / values[i]);
    error = difference > error ? difference : error;
  }
  solution.residual = complete ? lanes.max(error) / (scale * heaviest) : kInfinity;
  return solution;
}

struct AlignedMtlMethod : MethodTraits<MethodId::aligned_mtl> {
  static constexpr const char* kName = "AlignedMTL";
  static constexpr int kScratchMatrices = 3;

  template <class Visitor>
  static void visit_options(Visitor& visit, Method& method) {
    visit.word("scale_mode", method.aligned_mtl.scale_mode,
               {{"min", ScaleMode::min}, {"median", ScaleMode::median}, {"mean", ScaleMode::mean}});
    visit.preference("preference", method.aligned_mtl.preference);
  }

  template <class Lanes>
  BUCKET_MOO_HD static Solution solve(Lanes lanes, const Method& method, const Problem& problem, double*,
                                      double* weights, Scratch scratch) {
    return solve_aligned_mtl(lanes, method.aligned_mtl, problem, weights, scratch);
  }
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHODS_ALIGNED_MTL_HPP
