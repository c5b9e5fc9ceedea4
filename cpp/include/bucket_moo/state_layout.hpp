// How what a method carries from step to step lies in memory, and how the parts of some objectives are moved.
#ifndef BUCKET_MOO_STATE_LAYOUT_HPP
#define BUCKET_MOO_STATE_LAYOUT_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/method_list.hpp>
#include <bucket_moo/smoothing.hpp>
#include <cstddef>

namespace bucket_moo {

/// Doubles of the part of a state that the method itself has: [k, k] where it remembers pairs of objectives.
BUCKET_MOO_HD constexpr std::size_t pair_state_size(MethodId id, int k) {
  const std::size_t size = static_cast<std::size_t>(k);
  return Methods::remembers_pairs(id) ? size * size : 0;
}

/// Doubles of state that a method carries from step to step, per bucket of k objectives. Fresh state is all zeros.
/// What it remembers of pairs [k, k], then smooth_weights()'s [2, k], each where it is used.
BUCKET_MOO_HD constexpr std::size_t state_size(const Method& method, int k) {
  return pair_state_size(method.id, k) + (smooths(method.smoothing) ? 2 * static_cast<std::size_t>(k) : 0);
}

/// Some objectives of a state: entry i is at place[i] of the state's `size` objectives; place == nullptr: at i.
template <class Value>
struct StateView {
  Value* values;  ///< [state_size(method, size)]
  int size;
  const int* place;

  BUCKET_MOO_HD int at(int i) const { return place == nullptr ? i : place[i]; }
};

/// Copies the states of `count` objectives; other objectives of `to` keep what they have. Needs a sync() before lanes
/// use what others have copied.
template <class Lanes>
BUCKET_MOO_HD void copy_state(Lanes lanes, const Method& method, int count, StateView<const double> from,
                              StateView<double> to) {
  const std::size_t from_at = pair_state_size(method.id, from.size);
  const std::size_t to_at = pair_state_size(method.id, to.size);
  if (Methods::remembers_pairs(method.id)) {
    BUCKET_MOO_UNROLL(1)
    for (int entry = lanes.lane(); entry < count * count; entry += lanes.count()) {
      const int i = entry / count;
      const int j = entry % count;
      to.values[to.at(i) * to.size + to.at(j)] = from.values[from.at(i) * from.size + from.at(j)];
    }
  }
  if (smooths(method.smoothing)) {
    BUCKET_MOO_UNROLL(1)
    for (int entry = lanes.lane(); entry < 2 * count; entry += lanes.count()) {
      const int part = entry / count;
      const int i = entry % count;
      to.values[to_at + static_cast<std::size_t>(part * to.size + to.at(i))] =
          from.values[from_at + static_cast<std::size_t>(part * from.size + from.at(i))];
    }
  }
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_STATE_LAYOUT_HPP
