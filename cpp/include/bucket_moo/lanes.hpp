// Lane policies: how many threads work on one problem, and how they agree on a value.
//
// A solver is written once. Element-wise work is `for (int i = lanes.lane(); i < k; i += lanes.count())`, scalars are
// computed alike by all lanes, and values cross lanes in two ways only: through memory followed by `sync()`, or through
// a collective below. Every lane must reach every sync() and every collective, in the same order.
// Reductions combine in a fixed order, so results are reproducible, and all lanes receive the same bits. Those that do
// not need one another go into one reduce(): lanes then wait for one exchange at a time instead of several.
#ifndef BUCKET_MOO_LANES_HPP
#define BUCKET_MOO_LANES_HPP

#include <bucket_moo/config.hpp>
#include <cmath>

namespace bucket_moo {

/// A value and where it was found.
struct Located {
  double value;
  int index;
};

/// Whether `a` comes before `b`: the smaller value, the lower index between equal values.
BUCKET_MOO_HD constexpr bool comes_before(Located a, Located b) {
  return a.value < b.value || (a.value == b.value && a.index < b.index);
}

// What reduce() takes: a variable that holds this lane's part, and afterwards the whole. A lane without a part holds
// the neutral element. Two lanes that join each other's part end with the same: a.join(b) == b.join(a).

struct Sum {
  double& value;
  BUCKET_MOO_HD void join(double other) const { value += other; }
};
/// The smallest number: a NaN is none, and -0 is smaller than 0.
struct Min {
  double& value;
  BUCKET_MOO_HD void join(double other) const {
    const bool lower_zero = other == value && std::copysign(1.0, other) < 0.0;
    value = other < value || lower_zero || value != value ? other : value;
  }
};
/// The largest number: a NaN is none, and 0 is larger than -0.
struct Max {
  double& value;
  BUCKET_MOO_HD void join(double other) const {
    const bool upper_zero = other == value && std::copysign(1.0, other) > 0.0;
    value = other > value || upper_zero || value != value ? other : value;
  }
};
/// The Located that comes before all others. Values are not NaN: where a lane starts with {infinity, k} and takes what
/// comes before it, none is.
struct First {
  Located& value;
  BUCKET_MOO_HD void join(Located other) const { value = comes_before(other, value) ? other : value; }
};

/// Reductions of one value, for a policy that has reduce().
template <class Lanes>
struct SingleReductions {
  BUCKET_MOO_HD double sum(double x) const {
    self().reduce(Sum{x});
    return x;
  }
  BUCKET_MOO_HD double min(double x) const {
    self().reduce(Min{x});
    return x;
  }
  BUCKET_MOO_HD double max(double x) const {
    self().reduce(Max{x});
    return x;
  }
  BUCKET_MOO_HD Located argmin(Located x) const {
    self().reduce(First{x});
    return x;
  }

 private:
  BUCKET_MOO_HD const Lanes& self() const { return static_cast<const Lanes&>(*this); }
};

/// One thread solves one problem.
struct HostLanes : SingleReductions<HostLanes> {
  /// Whether there is but one lane.
  static constexpr bool kSerial = true;

  BUCKET_MOO_HD static constexpr int lane() { return 0; }
  BUCKET_MOO_HD static constexpr int count() { return 1; }
  BUCKET_MOO_HD static constexpr void sync() {}
  BUCKET_MOO_HD static constexpr bool any(bool x) { return x; }
  template <class... Reductions>
  BUCKET_MOO_HD static constexpr void reduce(Reductions...) {}

  /// A pointer into the memory that lanes share, told to the compiler to be one.
  template <class T>
  BUCKET_MOO_HD static constexpr T* near(T* pointer) {
    return pointer;
  }

  /// What to keep of a number that divide() divides by, several times.
  BUCKET_MOO_HD static constexpr double divisor(double x) { return x; }
  BUCKET_MOO_HD static constexpr double divide(double x, double divisor) { return x / divisor; }
};

#if BUCKET_MOO_HAS_WARPS
/// The 32 threads of a warp solve one problem. All 32 must be active; threadIdx.x gives the lane.
class WarpLanes : public SingleReductions<WarpLanes> {
 public:
  static constexpr bool kSerial = false;

  /// \param parts reductions are over the parts of that many lanes, the first ones; more than 32 count as 32
  BUCKET_MOO_DEVICE explicit WarpLanes(int parts = 32) : width_(1) {
    while (width_ < parts && width_ < 32) width_ *= 2;
  }

  BUCKET_MOO_DEVICE static int lane() { return static_cast<int>(threadIdx.x & 31u); }

  /// 32, which compilers are not to know: a loop over lanes has one turn or two, and they would unroll it four times.
  BUCKET_MOO_DEVICE static int count() {
    int count = 32;
    asm("" : "+r"(count));
    return count;
  }

  /// Orders the warp's reads and writes of shared and global memory.
  BUCKET_MOO_DEVICE static void sync() { __syncwarp(kAll); }

  /// Of all 32 lanes.
  BUCKET_MOO_DEVICE static bool any(bool x) { return __any_sync(kAll, x) != 0; }

  /// Butterflies: a + b == b + a bit for bit, hence every lane ends with the same bits. In the first round both sides
  /// come from the lanes that have a part, so that the others end with the same bits too.
  template <class... Reductions>
  BUCKET_MOO_DEVICE void reduce(Reductions... reductions) const {
    const int own = lane() & (width_ - 1);
    int offset = width_ / 2;
    first_round(own, own ^ offset, reductions...);
    for (offset /= 2; offset > 0; offset /= 2) round(own ^ offset, reductions...);
  }

  /// Shared memory. A compiler that does not know it makes generic loads and stores, which take longer.
  template <class T>
  BUCKET_MOO_DEVICE static T* near(T* pointer) {
    return static_cast<T*>(__cvta_shared_to_generic(__cvta_generic_to_shared(pointer)));
  }

  /// A division takes as long as some ten multiplications.
  BUCKET_MOO_DEVICE static double divisor(double x) { return 1.0 / x; }
  BUCKET_MOO_DEVICE static double divide(double x, double divisor) { return x * divisor; }

 private:
  static constexpr unsigned kAll = 0xffffffffu;

  BUCKET_MOO_DEVICE static double of_lane(double x, int lane) { return __shfl_sync(kAll, x, lane); }
  BUCKET_MOO_DEVICE static Located of_lane(Located x, int lane) {
    return {__shfl_sync(kAll, x.value, lane), __shfl_sync(kAll, x.index, lane)};
  }

  // All values are sent before the first one is waited for.
  template <class Reduction, class... Others>
  BUCKET_MOO_DEVICE void round(int from, Reduction reduction, Others... others) const {
    const auto value = of_lane(reduction.value, from);
    if constexpr (sizeof...(others) > 0) round(from, others...);
    reduction.join(value);
  }
  template <class Reduction, class... Others>
  BUCKET_MOO_DEVICE void first_round(int own, int from, Reduction reduction, Others... others) const {
    const auto mine = of_lane(reduction.value, own);
    const auto value = of_lane(reduction.value, from);
    if constexpr (sizeof...(others) > 0) first_round(own, from, others...);
    reduction.value = mine;
    if (from != own) reduction.join(value);
  }

  int width_;
};
#endif

}  // namespace bucket_moo

#endif  // BUCKET_MOO_LANES_HPP
