// Gramian of float64 rows, of up to 64 objectives. Simple: such gradients are for tests and for small models.
#ifndef BUCKET_MOO_CUDA_GRAMIAN_FLOAT64_CUH
#define BUCKET_MOO_CUDA_GRAMIAN_FLOAT64_CUH

#include <cuda_runtime.h>

#include <cstdint>

#include "exact_product.cuh"
#include "gramian_pass.cuh"

namespace bucket_moo::cuda {

/// Elements of the rows that a block multiplies at a time; they are read from the cache for every entry but the first.
inline constexpr int kFloat64Tile = 1024;

inline constexpr std::size_t kFloat64Shared = sizeof(double) * packed_size(kMaxObjectives);

/// Writes a block's sums over the tiles that begin at `begin`, `begin` + `stride` and so on before `end` to its place
/// in `pass.partial`. A warp an entry, in turn.
__device__ inline void multiply_float64(const GramianPass& pass, int entries, std::int64_t begin, std::int64_t end,
                                        std::int64_t stride) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const bool first_lane = threadIdx.x % kWarp == 0;
  double* const total = dynamic_shared<double>();
  for (int entry = static_cast<int>(threadIdx.x); entry < entries; entry += kGramianThreads) total[entry] = 0.0;
  __syncthreads();
  for (std::int64_t tile = begin; tile < end; tile += stride) {
    const std::int64_t tile_end = tile + kFloat64Tile < end ? tile + kFloat64Tile : end;
    for (int entry = warp; entry < entries; entry += kGramianWarps) {
      const int i = packed_row(entry);
      const double product = exact_product<DType::float64>(pass, i, entry - packed_size(i), tile, tile_end);
      if (first_lane) total[entry] += product;
    }
  }
  __syncthreads();
  for (int entry = static_cast<int>(threadIdx.x); entry < entries; entry += kGramianThreads) {
    pass.partial[static_cast<std::int64_t>(blockIdx.x) * entries + entry] = total[entry];
  }
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_GRAMIAN_FLOAT64_CUH
