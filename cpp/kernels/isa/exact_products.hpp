#pragma once

#include "kernels/isa/dot_tile.hpp"
#include "kernels/isa/objective_block.hpp"

namespace bucket_moo::isa::BUCKET_MOO_ISA {

/// Range of a diagonal entry of one block within which its float32 products can be trusted.
///
/// Below: under FTZ each of the block's `size` multiply-adds may lose up to 2^-126 (2^-150 without), so an entry of the
/// block is off by at most size * 2^-126. With both diagonal entries at or above size * 2^-102 that is at most
/// 2^-24 |g_i| |g_j|, the rounding of one float32. (Root mean square 2^-51, 4e-16: gradients rarely get there.)
/// Input that DAZ takes for zero loses less: 2^-126 an element, beside 2^-51.
/// Above: |x y| <= max(x^2, y^2), lane by lane, so that up to 2^127 no pair of two trusted rows can have overflowed.
/// NaN is in no range.
BUCKET_MOO_INLINE bool trusted(double diagonal, std::int64_t size) {
  return diagonal >= static_cast<double>(size) * 0x1p-102 && diagonal <= 0x1p127;
}

/// Slots of a tile for which products in float64 cannot help, because they hold NaN or Inf: not tried again.
struct NonFinite {
  bool slot[kMaxObjectives] = {};
};

/// The part of repair() that is hardly ever run.
template <DType D>
__attribute__((noinline)) void multiply_in_float64(const Rows& rows, const ObjectiveMap& map,
                                                   const ObjectiveSlots& slots, Span span, const bool* wanted,
                                                   double* entries) {
  constexpr std::int64_t kRun = 128;  // 64 kB of stack for 64 objectives
  alignas(64) double panel[kMaxObjectives * kRun];
  const double* gradient[kMaxObjectives + kTile];
  const int count = slots.count;
  for (std::int64_t done = 0; done < span.size; done += kRun) {
    const Span run{span.begin + done, span.size - done < kRun ? span.size - done : kRun};
    objective_block<double, D>(rows, map, slots, run, panel, kRun, gradient);
    for (int t = 0; t < kTile; ++t) gradient[count + t] = gradient[count - 1];  // fills the last tile; not used
    for (int i = 0; i < count; ++i) {
      if (!wanted[i]) continue;
      for (int j = 0; j < count; j += kTile) {
        double product[kTile];
        dot_tile<double, 1, kTile, false>(gradient + i, gradient + j, padded(run.size), product, kTile);
        for (int t = 0; t < kTile && j + t < count; ++t) {
          const int other = j + t;
          if (other < i && wanted[other]) continue;  // done from the other side
          double& entry = entries[other < i ? other * count + i : i * count + other];
          entry = done == 0 ? product[t] : entry + product[t];
        }
      }
    }
  }
}

/// Replaces the entries of the block's Gramian that float32 products may have spoilt by ones with float64 products (of
/// which none can overflow or underflow: float32 squared is within 1e-90 and 1e+77). Costs a look at the diagonal where
/// all is well, a scan of the block, which is in the cache, for a row of zeros, and for a row that needs it about K
/// float64 products an element.
///
/// \param entries  [slots.count, slots.count] upper triangle, updated
template <DType D>
void repair(const Rows& rows, const ObjectiveMap& map, const ObjectiveSlots& slots, Span span, double* entries,
            NonFinite* non_finite) {
  bool wanted[kMaxObjectives] = {};
  bool any = false;
  for (int s = 0; s < slots.count; ++s) {
    const double diagonal = entries[s * slots.count + s];
    if (trusted(diagonal, span.size) || non_finite->slot[s]) continue;
    if (diagonal == 0 && all_zero<D>(rows, map, slots, s, span)) continue;
    wanted[s] = any = true;
  }
  if (!any) return;
  multiply_in_float64<D>(rows, map, slots, span, wanted, entries);
  for (int s = 0; s < slots.count; ++s) {
    const double diagonal = entries[s * slots.count + s];
    if (wanted[s] && !(diagonal - diagonal == 0)) non_finite->slot[s] = true;
  }
}

}  // namespace bucket_moo::isa::BUCKET_MOO_ISA
