// What the kernels of a Gramian share: their arguments, what they make of the table, and their end.
#ifndef BUCKET_MOO_CUDA_GRAMIAN_PASS_CUH
#define BUCKET_MOO_CUDA_GRAMIAN_PASS_CUH

#include <cuda_runtime.h>

#include <bucket_moo/objective_table.hpp>
#include <bucket_moo/packed_triangle.hpp>
#include <cstdint>

#include "elements.cuh"
#include "gramian.cuh"
#include "gramian_plan.cuh"
#include "last_arrival.cuh"
#include "launch.cuh"

namespace bucket_moo::cuda {

/// Blocks whose sums one of them adds up: about the root of how many there are.
inline constexpr int kBlocksOfGroup = 16;
inline constexpr int kMaxGramianBlocks = (kGramianTickets - 1) * kBlocksOfGroup;

/// Arguments of the kernels.
struct GramianPass {
  DeviceRows rows;  ///< `scattered` holds the first addresses, of rows in one block too
  ObjectiveTable table;
  bool aligned;       ///< all rows can be read 16 bytes at a time
  bool add;           ///< to `packed`
  SmallPlan plan;     ///< of the small kernel
  double* partial;    ///< [blocks, packed_size(K)] sums of each block
  unsigned* tickets;  ///< [kGramianTickets]
  double* packed;     ///< [packed_size(K)] the result
};

/// K; 0 where there is nothing to do.
__device__ inline int objective_count(const GramianPass& pass) {
  if (pass.table.header == nullptr) return pass.rows.count;
  return pass.table.header->error == StepError::none ? pass.table.header->k : 0;
}

/// Whether objective k is row k, whole.
__device__ inline bool rows_are_objectives(const GramianPass& pass) {
  return pass.table.header == nullptr || pass.table.header->one_to_one != 0;
}

/// Range of a diagonal entry over at most 1024 elements within which its float32 products can be trusted.
///
/// Below: each sum or product is off by up to 2^-150 for want of smaller subnormals, an entry by less than 2^-139. With
/// both diagonal entries above 2^-110 that is at most 2^-29 |g_i| |g_j|. (Root mean square 2^-60, 1e-18.)
/// Above: |x y| <= max(x^2, y^2), so that up to 2^126 no product or sum of two trusted rows can have overflowed.
/// NaN is in no range.
__device__ inline bool trusted(float diagonal) { return diagonal >= 0x1p-110f && diagonal <= 0x1p126f; }

/// The sum of `count` numbers that are `stride` apart, from the first to the last.
__device__ inline double column_sum(const double* column, int count, std::int64_t stride) {
  double sum = 0.0;
#pragma unroll 16
  for (int i = 0; i < count; ++i) sum += column[i * stride];
  return sum;
}

/// Adds up the blocks' sums, by the last blocks that store theirs: that of each group adds up the group, that of the
/// grid the groups. Who is last changes nothing, since every sum goes from the first block to the last. All threads of
/// all blocks come here, unless there is nothing to do, and after what they wrote to `partial`.
__device__ inline void finish_gramian(const GramianPass& pass, int entries) {
  const int group = static_cast<int>(blockIdx.x) / kBlocksOfGroup;
  const int groups = (static_cast<int>(gridDim.x) + kBlocksOfGroup - 1) / kBlocksOfGroup;
  const int first = group * kBlocksOfGroup;
  const int left = static_cast<int>(gridDim.x) - first;
  const int blocks = left < kBlocksOfGroup ? left : kBlocksOfGroup;
  if (!is_last_arrival(pass.tickets + 1 + group, blocks)) return;
  double* const of_group = pass.partial + static_cast<std::int64_t>(first) * entries;
  for (int entry = static_cast<int>(threadIdx.x); entry < entries; entry += kGramianThreads) {
    of_group[entry] = column_sum(of_group + entry, blocks, entries);
  }
  if (!is_last_arrival(pass.tickets, groups)) return;
  for (int entry = static_cast<int>(threadIdx.x); entry < entries; entry += kGramianThreads) {
    const double sum = column_sum(pass.partial + entry, groups, static_cast<std::int64_t>(kBlocksOfGroup) * entries);
    pass.packed[entry] = pass.add ? pass.packed[entry] + sum : sum;
  }
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_GRAMIAN_PASS_CUH
