// A guard for solutions that rounding has made up.
#ifndef BUCKET_MOO_OUT_OF_PROPORTION_HPP
#define BUCKET_MOO_OUT_OF_PROPORTION_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <cmath>

namespace bucket_moo {

/// Whether weights that missed their certificate are also far longer than what they started from.
///
/// Rows that are linearly dependent (more objectives than elements, opposite gradients) have no conflict-free update
/// but 0. Where the Gramian was rounded (of float32 products, say), that 0 becomes a tiny or negative curvature. A
/// minimiser along it, if there is one, has meaningless weights of any size up to overflow. Applied, they would wreck a
/// model.
/// \param residual the certificate; NaN counts as missed
/// \param gram     [k, k]
/// \param weights  [k]
/// \param start    [k] what the weights are measured against, >= 0
template <class Lanes>
BUCKET_MOO_HD bool out_of_proportion(Lanes lanes, double residual, int k, const double* gram, const double* weights,
                                     const double* start) {
  constexpr double kLongest = 1e4;
  double length = 0.0;
  double reference = 0.0;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    const double norm = std::sqrt(gram[i * k + i]);
    length += std::fabs(weights[i]) * norm;
    reference += start[i] * norm;
  }
  lanes.reduce(Sum{length}, Sum{reference});
  return !(residual <= kCertificateTolerance) && !(length <= kLongest * reference);
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_OUT_OF_PROPORTION_HPP
