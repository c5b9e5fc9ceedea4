// Which coefficients of a combination may be multiplied with in float32.
#pragma once

#include "bucket_moo/config.hpp"

namespace bucket_moo {

/// Whether a coefficient is 0 or, rounded to float32, keeps its precision. Weights that undo a scale of the gradients
/// (1e+40 times 1e-40) do not, and multiply in float64.
BUCKET_MOO_HD BUCKET_MOO_ALWAYS_INLINE constexpr bool normal_float32(double coefficient) {
  const double magnitude = coefficient < 0.0 ? -coefficient : coefficient;
  return magnitude == 0.0 || !(magnitude < 0x1p-126 || magnitude > 0x1.fffffep127);
}

}  // namespace bucket_moo
