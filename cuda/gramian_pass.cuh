// What the kernels of one Gramian share: their arguments, and which of them does the work.
#ifndef BUCKET_MOO_CUDA_GRAMIAN_PASS_CUH
#define BUCKET_MOO_CUDA_GRAMIAN_PASS_CUH

#include <cuda_runtime.h>

#include <bucket_moo/objective_table.hpp>
#include <bucket_moo/packed_triangle.hpp>

#include "elements.cuh"
#include "launch.cuh"

namespace bucket_moo::cuda {

/// Largest K with a kernel of its own that keeps the whole Gramian in registers.
inline constexpr int kMaxSmall = 16;

inline constexpr int kGramianThreads = 256;
inline constexpr int kGramianWarps = kGramianThreads / kWarp;

/// Arguments of the kernels.
struct GramianPass {
  DeviceRows rows;  ///< `scattered` holds the first addresses, of rows in one block too
  ObjectiveTable table;
  int likely_k;     ///< the K of the small kernel that is launched; 0: none is
  bool aligned;     ///< all rows can be read 16 bytes at a time
  double* partial;  ///< [packed_size(K), blocks] sums of each block
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

/// Whether the work is the small kernel's. Objectives of several rows are not: reading their rows takes longer than the
/// tiled kernel's multiplications.
__device__ inline bool small_works(const GramianPass& pass) {
  return objective_count(pass) == pass.likely_k && rows_are_objectives(pass);
}

/// Range of a diagonal entry over at most 1024 elements within which its float32 products can be trusted.
///
/// Below: each sum or product is off by up to 2^-150 for want of smaller subnormals, an entry by less than 2^-139. With
/// both diagonal entries above 2^-110 that is at most 2^-29 |g_i| |g_j|. (Root mean square 2^-60, 1e-18.)
/// Above: |x y| <= max(x^2, y^2), so that up to 2^126 no product or sum of two trusted rows can have overflowed.
/// NaN is in no range.
__device__ inline bool trusted(float diagonal) { return diagonal >= 0x1p-110f && diagonal <= 0x1p126f; }

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_GRAMIAN_PASS_CUH
