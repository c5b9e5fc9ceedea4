// How the work of the small kernel is cut up: numbers for the host and for tests.
#ifndef BUCKET_MOO_CUDA_GRAMIAN_PLAN_CUH
#define BUCKET_MOO_CUDA_GRAMIAN_PLAN_CUH

#include <bucket_moo/config.hpp>
#include <cstddef>
#include <cstdint>

namespace bucket_moo::cuda {

/// Largest K with a kernel that keeps the whole Gramian in registers. There is one for every even K.
inline constexpr int kMaxSmall = 16;

inline constexpr int kGramianThreads = 256;
inline constexpr int kGramianWarps = kGramianThreads / 32;

/// Elements of a row that are added up in float32 at most.
inline constexpr int kMaxFloat32Sum = 1024;

/// Elements of a row that a warp reads at a time: 16 bytes a lane.
BUCKET_MOO_HD constexpr int small_step(std::size_t element) { return 32 * 16 / static_cast<int>(element); }

/// Steps of a float32 sum at most; a multiple of small_unroll().
BUCKET_MOO_HD constexpr int small_most_steps(std::size_t element) { return kMaxFloat32Sum / small_step(element); }

/// Blocks that a multiprocessor has to hold, which bounds the registers: as many as K allows without spilling.
BUCKET_MOO_HD constexpr int small_resident(int k) { return k <= 8 ? 2 : 1; }

/// Steps whose loads are under way together: of few rows, several, to hide the memory's latency.
BUCKET_MOO_HD constexpr int small_unroll(int k) { return k <= 2 ? 4 : k <= 4 ? 2 : 1; }

/// Warps get units of small_unroll() steps that are side by side, of which the first few warps have one more.
struct SmallPlan {
  int blocks;          ///< at least 1
  std::int64_t units;  ///< of a warp
  int more;            ///< warps that have one more
};

/// As many blocks as may be, unless there are fewer units than warps.
constexpr SmallPlan plan_small(std::int64_t size, std::size_t element, int k, int most_blocks) {
  const std::int64_t unit = small_unroll(k) * small_step(element);
  const std::int64_t units = (size + unit - 1) / unit;
  const std::int64_t wanted = (units + kGramianWarps - 1) / kGramianWarps;
  const std::int64_t blocks = wanted < 1 ? 1 : wanted < most_blocks ? wanted : most_blocks;
  const std::int64_t warps = blocks * kGramianWarps;
  return {static_cast<int>(blocks), units / warps, static_cast<int>(units % warps)};
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_GRAMIAN_PLAN_CUH
