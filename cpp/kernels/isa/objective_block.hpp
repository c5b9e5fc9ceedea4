#pragma once

#include "kernels/isa/weighted_sum.hpp"

namespace bucket_moo::isa::BUCKET_MOO_ISA {

/// The objectives that have a row to read, numbered without gaps: "slots".
struct ObjectiveSlots {
  int count = 0;
  int objective[kMaxObjectives];      ///< of a slot
  int slot[kMaxObjectives];           ///< of an objective; -1 without a row
  const void* whole[kMaxObjectives];  ///< of a slot: the row that *is* the gradient (alone, share 1); null if none is
};

inline ObjectiveSlots number_objectives(const Rows& rows, const ObjectiveMap& map) {
  ObjectiveSlots slots;
  int rows_of[kMaxObjectives] = {};
  const void* whole[kMaxObjectives];
  for (int r = 0; r < rows.count; ++r) {
    if (map.share[r] == 0) continue;
    const int k = map.objective[r];
    whole[k] = ++rows_of[k] == 1 && map.share[r] == 1 ? rows.data[r] : nullptr;
  }
  for (int k = 0; k < map.k; ++k) {
    slots.slot[k] = rows_of[k] == 0 ? -1 : slots.count;
    if (rows_of[k] == 0) continue;
    slots.objective[slots.count] = k;
    slots.whole[slots.count] = whole[k];
    ++slots.count;
  }
  return slots;
}

/// A run of elements of the tile.
struct Span {
  std::int64_t begin;
  std::int64_t size;
};

/// Up to whole lanes.
BUCKET_MOO_INLINE std::int64_t padded(std::int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

/// One run of elements of every objective's gradient, in T: rows that are it already are pointed to where they lie, the
/// others are formed in `panel`. Either gives the same numbers.
///
/// \param panel     [slots.count, pitch]
/// \param gradient  [slots.count] receives pointers to padded(span.size) elements, zero beyond span.size
template <typename T, DType D>
void objective_block(const Rows& rows, const ObjectiveMap& map, const ObjectiveSlots& slots, Span span, T* panel,
                     std::int64_t pitch, const T** gradient) {
  constexpr DType kPanel = sizeof(T) == 8 ? DType::float64 : DType::float32;
  constexpr std::int64_t kElement = sizeof(Storage<D>);
  const bool in_place = D == kPanel && span.size % kLanes == 0;
  bool started[kMaxObjectives] = {};
  for (int r = 0; r < rows.count; ++r) {
    if (map.share[r] == 0) continue;
    const int s = slots.slot[map.objective[r]];
    const void* const from = static_cast<const char*>(rows.data[r]) + span.begin * kElement;
    if (in_place && slots.whole[s] != nullptr) {
      gradient[s] = static_cast<const T*>(from);
      continue;
    }
    T* const to = panel + s * pitch;
    const T share = static_cast<T>(map.share[r]);
    weighted_sum<T, D, kPanel, 1, kGramianBlock<T>>(&from, &share, started[s] ? to : nullptr, to, span.size);
    started[s] = true;
    gradient[s] = to;
  }
  const std::int64_t padding = padded(span.size) - span.size;
  if (padding == 0) return;
  for (int s = 0; s < slots.count; ++s) {
    __builtin_memset(panel + s * pitch + span.size, 0, static_cast<std::size_t>(padding) * sizeof(T));
  }
}

/// Whether a slot's rows are zero, plus or minus, throughout the run. By their bits: neither products that underflow
/// nor DAZ can make a subnormal look like zero.
template <DType D>
bool all_zero(const Rows& rows, const ObjectiveMap& map, const ObjectiveSlots& slots, int slot, Span span) {
  using E = Storage<D>;
  for (int r = 0; r < rows.count; ++r) {
    if (map.share[r] == 0 || slots.slot[map.objective[r]] != slot) continue;
    const char* const from = static_cast<const char*>(rows.data[r]) + span.begin * static_cast<std::int64_t>(sizeof(E));
    constexpr std::int64_t kStep = kRegisterBytes / sizeof(E);
    constexpr std::uint64_t kMagnitude = sizeof(E) == 2 ? 0x7fff7fff7fff7fffULL : 0x7fffffff7fffffffULL;
    Register<std::uint64_t> seen{};
    std::int64_t i = 0;
    for (; i + kStep <= span.size; i += kStep) {
      seen |= load<Register<std::uint64_t>>(from + i * static_cast<std::int64_t>(sizeof(E)));
    }
    Register<std::uint64_t> last{};
    __builtin_memcpy(&last, from + i * static_cast<std::int64_t>(sizeof(E)),
                     static_cast<std::size_t>(span.size - i) * sizeof(E));
    seen = (seen | last) & kMagnitude;
    for (int l = 0; l < kWidth<std::uint64_t>; ++l) {
      if (seen[l] != 0) return false;
    }
  }
  return true;
}

}  // namespace bucket_moo::isa::BUCKET_MOO_ISA
