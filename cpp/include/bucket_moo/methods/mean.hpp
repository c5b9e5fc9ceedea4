// The (weighted) mean: what data parallelism does.
#ifndef BUCKET_MOO_METHODS_MEAN_HPP
#define BUCKET_MOO_METHODS_MEAN_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/method_traits.hpp>

namespace bucket_moo {

/// Writes weights that sum to 1: all equal, or in proportion to options.weights. Weights that do not have a positive
/// finite sum count as all equal.
/// \param k       number of objectives, active or not
/// \param weights [k], out
template <class Lanes>
BUCKET_MOO_HD void solve_mean(Lanes lanes, const MeanOptions& options, int k, double* weights) {
  const double* const given = options.weights;
  double total = 0.0;
  if (given != nullptr) {
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) total += given[i];
    total = lanes.sum(total);
  }
  const bool weighted = total > 0.0 && total <= kLargest;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] = weighted ? given[i] / total : 1.0 / k;
  lanes.sync();
}

struct MeanMethod : MethodTraits<MethodId::mean> {
  static constexpr const char* kName = "Mean";
  static constexpr int kScratchMatrices = 1;

  template <class Visitor>
  static void visit_options(Visitor& visit, Method& method) {
    visit.preference("weights", method.mean.weights);
  }
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHODS_MEAN_HPP
