// Exponential averaging of weights over steps, for any method.
//
// Source: Zhou, Zhang, Jiang, Zhong, Gu, Zhu, "On the convergence of stochastic multi-objective gradient manipulation
// and beyond", NeurIPS 2022, algorithm 1 (CR-MOGM).
#ifndef BUCKET_MOO_SMOOTHING_HPP
#define BUCKET_MOO_SMOOTHING_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/method.hpp>
#include <cmath>

namespace bucket_moo {

BUCKET_MOO_HD constexpr bool smooths(const SmoothingOptions& options) {
  return options.alpha > 0.0 && options.alpha < 1.0;
}

/// w_i <- α w_i' + (1-α) w_i, with w_i' the last smoothed weight of objective i. Its first weight stays as it is. An
/// objective that is inactive gets 0 and keeps its past.
///
/// What a method guarantees of one step's weights (no conflict, say) does not hold for the average. While the set of
/// active objectives changes, the sum of weights that lie on the simplex may differ from 1.
/// \param k       objectives, active or not
/// \param slot    [k] < 0: inactive
/// \param weights [k], in and out
/// \param past    [2 k], in and out: the last smoothed weights, then whether (0 or 1) there are any; zero when fresh
template <class Lanes>
BUCKET_MOO_HD void smooth_weights(Lanes lanes, const SmoothingOptions& options, int k, const int* slot, double* weights,
                                  double* past) {
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    if (slot[i] < 0) continue;
    const bool known = past[k + i] == 1.0 && std::fabs(past[i]) <= kLargest;
    if (known) weights[i] = options.alpha * past[i] + (1.0 - options.alpha) * weights[i];
    past[i] = weights[i];
    past[k + i] = 1.0;
  }
  lanes.sync();
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_SMOOTHING_HPP
