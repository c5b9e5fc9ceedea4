// How what a method carries from step to step lies in memory, and how the parts of some objectives are moved.
#ifndef BUCKET_MOO_STATE_LAYOUT_HPP
#define BUCKET_MOO_STATE_LAYOUT_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/smoothing.hpp>
#include <cstddef>

namespace bucket_moo {

/// Doubles of state that a method carries from step to step, per bucket of k objectives. Fresh state is all zeros.
/// GradVac's targets [k, k], then smooth_weights()'s [2, k], each where it is used.
BUCKET_MOO_HD constexpr std::size_t state_size(const Method& method, int k) {
  const std::size_t size = static_cast<std::size_t>(k);
  return (method.id == MethodId::gradvac ? size * size : 0) + (smooths(method.smoothing) ? 2 * size : 0);
}

/// Some objectives of a state: entry i is at place[i] of the state's `size` objectives; place == nullptr: at i.
template <class Value>
struct StateView {
  Value* values;  ///< [state_size(method, size)]
  int size;
  const int* place;

  BUCKET_MOO_HD int at(int i) const { return place == nullptr ? i : place[i]; }
};

/// Copies the states of `count` objectives; other objectives of `to` keep what they have. Visible to all lanes on
/// return.
template <class Lanes>
BUCKET_MOO_HD void copy_state(Lanes lanes, const Method& method, int count, StateView<const double> from,
                              StateView<double> to) {
  std::size_t from_at = 0;
  std::size_t to_at = 0;
  if (method.id == MethodId::gradvac) {
    for (int entry = lanes.lane(); entry < count * count; entry += lanes.count()) {
      const int i = entry / count;
      const int j = entry % count;
      to.values[to.at(i) * to.size + to.at(j)] = from.values[from.at(i) * from.size + from.at(j)];
    }
    from_at = static_cast<std::size_t>(from.size) * static_cast<std::size_t>(from.size);
    to_at = static_cast<std::size_t>(to.size) * static_cast<std::size_t>(to.size);
  }
  if (smooths(method.smoothing)) {
    for (int entry = lanes.lane(); entry < 2 * count; entry += lanes.count()) {
      const int part = entry / count;
      const int i = entry % count;
      to.values[to_at + static_cast<std::size_t>(part * to.size + to.at(i))] =
          from.values[from_at + static_cast<std::size_t>(part * from.size + from.at(i))];
    }
  }
  lanes.sync();
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_STATE_LAYOUT_HPP
