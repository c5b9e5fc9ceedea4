// The preference vector that several methods take, in the place of equal weights.
#ifndef BUCKET_MOO_PREFERENCE_HPP
#define BUCKET_MOO_PREFERENCE_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/limits.hpp>

namespace bucket_moo {

/// Writes weights of the active objectives that sum to 1, in proportion to `given`. All equal for nullptr, a negative
/// or NaN entry of an active objective, or a sum that is zero or overflows.
/// \param given     [all] or nullptr
/// \param k         active objectives, >= 1
/// \param objective [k] which objective each active one is
/// \param out       [k]
template <class Lanes>
BUCKET_MOO_HD void load_preference(Lanes lanes, const double* given, int k, const int* objective, double* out) {
  bool usable = false;
  double total = 0.0;
  if (given != nullptr) {
    bool bad = false;
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) {
      const double value = given[objective[i]];
      total += value;
      bad = bad || !(value >= 0.0);
    }
    total = lanes.sum(total);
    usable = !lanes.any(bad) && total > 0.0 && total <= kLargest;
  }
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) out[i] = usable ? given[objective[i]] / total : 1.0 / k;
  lanes.sync();
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_PREFERENCE_HPP
