// The Gramian of the unit gradients.
#ifndef BUCKET_MOO_COSINES_HPP
#define BUCKET_MOO_COSINES_HPP

#include <bucket_moo/config.hpp>
#include <cmath>

namespace bucket_moo {

/// cosine := D⁻¹ G D⁻¹ with D the norms; its diagonal is exactly 1. Rounding beyond [-1, 1] is clamped. A diagonal
/// entry that has underflowed to zero counts as orthogonal to all, with an inverse norm of 0, so that its weight
/// becomes 0. Needs a sync() before lanes use what others have computed.
/// \param gram    [k, k] symmetric
/// \param cosine  [k, k], out; may be gram
/// \param inverse [k], out: 1 / |g_i|
template <class Lanes>
BUCKET_MOO_HD void load_cosines(Lanes lanes, int k, const double* gram, double* cosine, double* inverse) {
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    const double square = gram[i * k + i];
    inverse[i] = square > 0.0 ? 1.0 / std::sqrt(square) : 0.0;
  }
  lanes.sync();
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    const double own = inverse[i];
    BUCKET_MOO_UNROLL(2)
    for (int j = 0; j < k; ++j) {
      // The longer of the two divides first: nothing overflows on the way.
      const double other = inverse[j];
      const double value = own < other ? gram[i * k + j] * own * other : gram[i * k + j] * other * own;
      cosine[i * k + j] = value > 1.0 ? 1.0 : (value < -1.0 ? -1.0 : value);
    }
    cosine[i * k + i] = 1.0;
  }
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_COSINES_HPP
