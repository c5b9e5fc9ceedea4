// Adasum: pairs of gradients are added after taking off half of what they have in common, up a tree.
//
// Source: Maleki, Musuvathi, Mytkowicz, Saarikivi, Xu, Eksarevskiy, Ekanayake, Barsoum, "Scaling distributed training
// with adaptive summation", 2020, eq. 2 and sec. 3.
#ifndef BUCKET_MOO_METHODS_ADASUM_HPP
#define BUCKET_MOO_METHODS_ADASUM_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/method_traits.hpp>
#include <bucket_moo/problem.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/solution.hpp>
#include <cmath>

namespace bucket_moo {

/// Adasum(a, b) = (1 - <a,b> / 2|a|²) a + (1 - <a,b> / 2|b|²) b over a binary tree: the mean of parallel gradients, the
/// sum of orthogonal ones.
///
/// The leaves are the active objectives in ascending order; a level joins neighbours, first with second, third with
/// fourth, and so on, and one that is left over moves up as it is. So any k will do, but for k >= 3 the result depends
/// on the order of the objectives. A node that has cancelled to rounding noise counts as zero, and its partner is
/// unchanged. Unchanged by g -> t g. May conflict.
///
/// \param weights [k], out
/// \param scratch 4 k doubles. Cost: 2 k² multiply-adds.
template <class Lanes>
BUCKET_MOO_HD void solve_adasum(Lanes lanes, const Problem& problem, double* weights, Scratch scratch) {
  const int k = problem.k;
  double* const within = scratch.doubles(k);  // w_i <g_i, own node>
  double* const across = scratch.doubles(k);  // w_i <g_i, partner>
  double* const length = scratch.doubles(k);  // |w_i| |g_i|
  for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] = 1.0;
  lanes.sync();

  for (int width = 1; width < k; width *= 2) {  // a node is `width` leaves
    for (int i = lanes.lane(); i < k; i += lanes.count()) {
      const double* const row = problem.gram + i * k;
      const int own = i / width * width;
      const int partner = (i / width ^ 1) * width;
      double inside = 0.0;
      for (int j = own; j < own + width && j < k; ++j) inside += weights[j] * row[j];
      double outside = 0.0;
      for (int j = partner; j < partner + width && j < k; ++j) outside += weights[j] * row[j];
      within[i] = weights[i] * inside;
      across[i] = weights[i] * outside;
      length[i] = std::fabs(weights[i]) * std::sqrt(row[i]);
    }
    lanes.sync();
    for (int i = lanes.lane(); i < k; i += lanes.count()) {
      const int own = i / width * width;
      const int partner = (i / width ^ 1) * width;
      double square = 0.0;
      double product = 0.0;
      double size = 0.0;
      for (int j = own; j < own + width && j < k; ++j) {
        square += within[j];
        product += across[j];
        size += length[j];
      }
      double other_square = 0.0;
      double other_size = 0.0;
      for (int j = partner; j < partner + width && j < k; ++j) {
        other_square += within[j];
        other_size += length[j];
      }
      const double noise = (k + 8) * kEpsilon;
      const bool both = square > noise * size * size && other_square > noise * other_size * other_size;
      if (both) weights[i] *= 1.0 - product / (2.0 * square);
    }
    lanes.sync();
  }
}

struct AdasumMethod : MethodTraits<MethodId::adasum> {
  static constexpr const char* kName = "Adasum";
  static constexpr int kScratchMatrices = 1;

  template <class Lanes>
  BUCKET_MOO_HD static Solution solve(Lanes lanes, const Method&, const Problem& problem, double*, double* weights,
                                      Scratch scratch) {
    solve_adasum(lanes, problem, weights, scratch);
    return Solution{};
  }
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHODS_ADASUM_HPP
