// Which problem of its group a parameter belongs to: that of the objectives that it depends on.
#ifndef BUCKET_MOO_SUPPORTS_HPP
#define BUCKET_MOO_SUPPORTS_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/limits.hpp>
#include <cstdint>

namespace bucket_moo {

/// Objectives of a step, by number: bit k is objective k.
using Support = std::uint64_t;
static_assert(kMaxObjectives <= 64);

/// How many supports a group is split by. What has yet another one joins the problem of all objectives.
inline constexpr int kMaxSupports = 16;

BUCKET_MOO_HD constexpr Support all_objectives(int k) { return k == 64 ? ~Support{0} : (Support{1} << k) - 1; }

/// The objectives whose gradients are not zero. A NaN is a gradient, too.
/// \param squared  (i) -> double: the squared norm of objective i's gradient
template <class Squared>
BUCKET_MOO_HD Support support_of(int k, Squared squared) {
  Support support = 0;
  for (int i = 0; i < k; ++i) {
    if (squared(i) != 0.0) support |= Support{1} << i;
  }
  return support;
}

/// The number of the problem that parameters of a support belong to among those of their group.
/// \param count    problems so far
/// \param known    (i) -> Support: of problem i
/// \param support  in; out: of that problem, which is all of them where there is no room for another
/// \return `count` for a new problem
template <class Known>
BUCKET_MOO_HD int problem_of(int count, Known known, Support all, Support* support) {
  const auto find = [&] {
    int i = 0;
    while (i < count && known(i) != *support) ++i;
    return i;
  };
  int found = find();
  if (found == count && count + 1 >= kMaxSupports) {  // room for that of all
    *support = all;
    found = find();
  }
  return found;
}

/// A method's weights are for the mean over the objectives that it counts, those with a gradient; a mean over all of
/// them, of which the others are zero here, is smaller.
/// \param importance  [k] shares of the objectives in the mean, of any sum; nullptr: equal ones
/// \param gramian     [k, k]
/// \param weights     [k], in and out
template <class Lanes>
BUCKET_MOO_HD void scale_to_mean(Lanes lanes, const double* importance, int k, const double* gramian, double* weights) {
  double counted = 0.0;  // by every lane, in the same order
  double total = 0.0;
  for (int i = 0; i < k; ++i) {
    const double share = importance == nullptr ? 1.0 : importance[i];
    total += share;
    counted += gramian[i * k + i] > 0.0 ? share : 0.0;
  }
  for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] *= counted / total;
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_SUPPORTS_HPP
