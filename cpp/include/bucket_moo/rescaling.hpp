// The direction of any method at another length.
#ifndef BUCKET_MOO_RESCALING_HPP
#define BUCKET_MOO_RESCALING_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/solution.hpp>
#include <cmath>

namespace bucket_moo {

BUCKET_MOO_HD constexpr bool rescales(const LengthOptions& options) { return options.to != Length::own; }

/// Multiplies the weights, so that the update has the length that is asked for. Signs stay, and with them who is in
/// conflict with whom.
///
/// Where the update vanishes, |d| <= 1e-6 sum |w_k| |g_k|, it has no direction: the weights stay, and a status of ok
/// becomes fallback. Those of a Gramian with a NaN or Inf stay too.
/// \param k        objectives, active or not
/// \param gramian  [k, k], symmetric
/// \param weights  [k], in and out
template <class Lanes>
BUCKET_MOO_HD void rescale_weights(Lanes lanes, const LengthOptions& options, int k, const double* gramian,
                                   double* weights, Solution* solution) {
  if (solution->status == Status::nonfinite || solution->status == Status::inactive) return;
  constexpr double kSmallest = 1e-6;
  double largest = 0.0;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    const double square = gramian[i * (k + 1)];
    if (square > largest) largest = square;
  }
  largest = lanes.max(largest);
  int exponent = 0;
  std::frexp(largest, &exponent);
  exponent -= exponent % 2;  // the root of the unit is a power of two, too
  exponent = exponent > 1000 ? 1000 : exponent < -1000 ? -1000 : exponent;
  const double unit = std::ldexp(1.0, -exponent);

  double active = 0.0;
  double sum = 0.0;      // |sum of g|^2
  double square = 0.0;   // |d|^2
  double lengths = 0.0;  // sum |w| |g|
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    double of_row = 0.0;
    BUCKET_MOO_UNROLL(4)
    for (int j = 0; j < k; ++j) {
      const double entry = unit * gramian[i * k + j];
      of_row += entry * weights[j];
      sum += entry;
    }
    square += of_row * weights[i];
    active += gramian[i * (k + 1)] > 0.0 ? 1.0 : 0.0;
    lengths += std::fabs(weights[i]) * std::sqrt(unit * gramian[i * (k + 1)]);
  }
  lanes.reduce(Sum{active}, Sum{sum}, Sum{square}, Sum{lengths});
  const bool vanishes = !(square > kSmallest * kSmallest * lengths * lengths);
  const double of_mean = sum > 0.0 ? std::sqrt(sum) / active : 0.0;
  const double target = options.to == Length::mean ? of_mean : options.value * std::ldexp(1.0, -exponent / 2);
  const double scale = target / std::sqrt(square);
  if (vanishes || !(scale <= kLargest)) {
    if (solution->status == Status::ok) solution->status = Status::fallback;
    return;
  }
  lanes.sync();  // every lane has read all weights
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] *= scale;
  lanes.sync();
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_RESCALING_HPP
