// Whether and how the Gramian of a bucket is estimated from random sketches. Needs nothing of torch.
#pragma once

#include <algorithm>
#include <bit>
#include <bucket_moo/sketch.hpp>
#include <cmath>
#include <cstdint>

namespace bucket_moo {

struct SketchOptions {
  std::int64_t width = 0;  ///< columns, is_sketch_width(); 0: `fraction` says how many
  double fraction = 0.0;   ///< columns for an element of the bucket, up to a power of two; 0 beside width 0: no sketch
  std::uint64_t seed = 0;

  bool enabled() const { return width > 0 || fraction > 0.0; }

  /// Columns for a bucket of n elements; 0: its Gramian is exact, since two sketches' worth of elements cost no more
  /// than a sketch is worth.
  std::int64_t width_for(std::int64_t n) const {
    if (!enabled()) {
      return 0;
    }
    const std::int64_t columns = width > 0 ? width : from_fraction(n);
    return n <= 2 * columns ? 0 : columns;
  }

 private:
  std::int64_t from_fraction(std::int64_t n) const {
    const double wanted = std::ceil(fraction * static_cast<double>(n));
    const auto columns = static_cast<std::int64_t>(
        std::clamp(wanted, static_cast<double>(kMinSketchWidth), static_cast<double>(kMaxSketchWidth)));
    return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(columns)));
  }
};

}  // namespace bucket_moo
