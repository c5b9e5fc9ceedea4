// The mean of the gradients' directions, as long as the mean of the gradients.
#ifndef BUCKET_MOO_METHODS_NORMALIZED_MEAN_HPP
#define BUCKET_MOO_METHODS_NORMALIZED_MEAN_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/method_traits.hpp>
#include <bucket_moo/problem.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/solution.hpp>
#include <cmath>

namespace bucket_moo {

/// w_k = s / |g_k| with s such that |d| = |sum of g_k / k|: the length of the mean of the active objectives' gradients.
///
/// Blind to conflicts: what a method gains over it is more than the balance of lengths. Unchanged by g -> t g.
///
/// Fallback: where the directions cancel, |sum of g_k / |g_k|| <= 1e-6 k, no such s exists and the weights are in that
/// proportion with sum 1.
///
/// \param weights [k], out
template <class Lanes>
BUCKET_MOO_HD Solution solve_normalized_mean(Lanes lanes, const NormalizedMeanOptions&, const Problem& problem,
                                             double* weights, Scratch) {
  constexpr double kSmallest = 1e-6;
  const int k = problem.k;
  const double* const gram = problem.gram;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] = 1.0 / std::sqrt(gram[i * (k + 1)]);
  lanes.sync();
  double inverse = 0.0;     // sum of 1 / |g_k|
  double directions = 0.0;  // squared length of the sum of directions
  double sum = 0.0;         // and of gradients
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    inverse += weights[i];
    double of_row = 0.0;
    BUCKET_MOO_UNROLL(4)
    for (int j = 0; j < k; ++j) {
      of_row += gram[i * k + j] * weights[j];
      sum += gram[i * k + j];
    }
    directions += of_row * weights[i];
  }
  lanes.reduce(Sum{inverse}, Sum{directions}, Sum{sum});
  const double smallest = kSmallest * k;
  const bool cancels = !(directions > smallest * smallest);
  const double length = sum > 0.0 ? std::sqrt(sum) / k : 0.0;
  lanes.sync();  // every lane has read all weights
  const double scale = cancels ? 1.0 / inverse : length / std::sqrt(directions);
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] *= scale;
  lanes.sync();
  Solution solution;
  if (cancels) solution.status = Status::fallback;
  return solution;
}

struct NormalizedMeanMethod : MethodTraits<MethodId::normalized_mean> {
  static constexpr const char* kName = "NormalizedMean";
  static constexpr int kScratchMatrices = 1;

  template <class Lanes>
  BUCKET_MOO_HD static Solution solve(Lanes lanes, const Method& method, const Problem& problem, double*,
                                      double* weights, Scratch scratch) {
    return solve_normalized_mean(lanes, method.normalized_mean, problem, weights, scratch);
  }
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHODS_NORMALIZED_MEAN_HPP
