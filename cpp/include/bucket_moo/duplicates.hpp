// Equal treatment of objectives that the Gramian cannot tell apart.
#ifndef BUCKET_MOO_DUPLICATES_HPP
#define BUCKET_MOO_DUPLICATES_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/scratch.hpp>
#include <cmath>

namespace bucket_moo {

/// Splits weights equally among identical objectives. An active-set method gives the whole weight to one of them, which
/// is as good, but then the result would depend on the order of the objectives.
///
/// Identical means equal rows of the Gramian up to a few roundings of |g_i||g_l|, so that it does not matter in which
/// order the inner products were summed; the combination moves by no more than that. Syncs before it reads weights.
/// \param gram    [k, k] symmetric
/// \param weights [k], in and out; the sum over each set of identical objectives stays
/// \param scratch k + k/2 + 1 doubles
/// Cost: k² comparisons when nothing is identical.
template <class Lanes>
BUCKET_MOO_HD void share_between_duplicates(Lanes lanes, int k, const double* gram, double* weights, Scratch scratch) {
  constexpr double kRoundings = 64.0 * kEpsilon;
  double* const shared = scratch.doubles(k);
  int* const representative = scratch.ints(k);  // the lowest index that is identical

  bool found = false;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    const double square = gram[i * k + i];
    int same = 0;
    BUCKET_MOO_UNROLL(1)
    for (; same < i; ++same) {
      const double other = gram[same * k + same];
      if (std::fabs(gram[i * k + same] - square) > kRoundings * square) continue;
      if (std::fabs(other - square) > kRoundings * square) continue;
      bool equal = true;
      BUCKET_MOO_UNROLL(2)
      for (int l = 0; l < k && equal; ++l) {
        const double difference = gram[i * k + l] - gram[same * k + l];
        equal = std::fabs(difference) <= kRoundings * std::sqrt(square * gram[l * k + l]);
      }
      if (equal) break;
    }
    representative[i] = same;
    found = found || same < i;
  }
  found = lanes.any(found);  // the same in all lanes
  lanes.sync();
  if (!found) return;

  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    double total = 0.0;
    int members = 0;
    BUCKET_MOO_UNROLL(2)
    for (int l = 0; l < k; ++l) {
      if (representative[l] == representative[i]) {
        total += weights[l];
        ++members;
      }
    }
    shared[i] = total / members;
  }
  lanes.sync();
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] = shared[i];
  lanes.sync();
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_DUPLICATES_HPP
