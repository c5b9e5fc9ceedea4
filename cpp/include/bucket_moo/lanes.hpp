// Lane policies: how many threads work on one problem, and how they agree on a value.
//
// A solver is written once. Element-wise work is `for (int i = lanes.lane(); i < k; i += lanes.count())`, scalars are
// computed alike by all lanes, and values cross lanes in two ways only: through memory followed by `sync()`, or through
// a collective below. Every lane must reach every sync() and every collective, in the same order.
// Reductions combine in a fixed order, so results are reproducible, and all lanes receive the same bits.
#ifndef BUCKET_MOO_LANES_HPP
#define BUCKET_MOO_LANES_HPP

#include <bucket_moo/config.hpp>

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

/// One thread solves one problem.
struct HostLanes {
  BUCKET_MOO_HD static constexpr int lane() { return 0; }
  BUCKET_MOO_HD static constexpr int count() { return 1; }
  BUCKET_MOO_HD static constexpr void sync() {}
  BUCKET_MOO_HD static constexpr double sum(double x) { return x; }
  BUCKET_MOO_HD static constexpr double min(double x) { return x; }
  BUCKET_MOO_HD static constexpr double max(double x) { return x; }
  BUCKET_MOO_HD static constexpr Located argmin(Located x) { return x; }
};

#if BUCKET_MOO_HAS_WARPS
/// The 32 threads of a warp solve one problem. All 32 must be active; threadIdx.x gives the lane.
struct WarpLanes {
  static constexpr unsigned kAll = 0xffffffffu;

  BUCKET_MOO_DEVICE static int lane() { return static_cast<int>(threadIdx.x & 31u); }
  /// 32, which compilers are not to know: a loop over lanes has one turn or two, and they would unroll it four times.
  BUCKET_MOO_DEVICE static int count() {
    int count = 32;
    asm("" : "+r"(count));
    return count;
  }

  /// Orders the warp's reads and writes of shared and global memory.
  BUCKET_MOO_DEVICE static void sync() { __syncwarp(kAll); }

  // Butterflies: a + b == b + a bit for bit, hence every lane ends with the same bits.
  BUCKET_MOO_DEVICE static double sum(double x) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kAll, x, offset);
    return x;
  }
  BUCKET_MOO_DEVICE static double min(double x) {
    for (int offset = 16; offset > 0; offset /= 2) {
      const double other = __shfl_xor_sync(kAll, x, offset);
      x = other < x ? other : x;
    }
    return x;
  }
  BUCKET_MOO_DEVICE static double max(double x) { return -min(-x); }
  BUCKET_MOO_DEVICE static Located argmin(Located x) {
    for (int offset = 16; offset > 0; offset /= 2) {
      const Located other{__shfl_xor_sync(kAll, x.value, offset), __shfl_xor_sync(kAll, x.index, offset)};
      x = comes_before(other, x) ? other : x;
    }
    return x;
  }
};
#endif

}  // namespace bucket_moo

#endif  // BUCKET_MOO_LANES_HPP
