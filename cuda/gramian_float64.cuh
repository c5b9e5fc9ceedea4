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

/// A warp an entry, in turn.
__global__ void __launch_bounds__(kGramianThreads) float64_gramian(const __grid_constant__ GramianPass pass) {
  const int entries = packed_size(objective_count(pass));
  if (entries == 0) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const bool first_lane = threadIdx.x % kWarp == 0;
  double* const total = dynamic_shared<double>();
  for (int entry = static_cast<int>(threadIdx.x); entry < entries; entry += kGramianThreads) total[entry] = 0.0;
  __syncthreads();
  for (std::int64_t tile = blockIdx.x; tile * kFloat64Tile < pass.rows.size; tile += gridDim.x) {
    const std::int64_t begin = tile * kFloat64Tile;
    const std::int64_t end = begin + kFloat64Tile < pass.rows.size ? begin + kFloat64Tile : pass.rows.size;
    for (int entry = warp; entry < entries; entry += kGramianWarps) {
      const int i = packed_row(entry);
      const double product = exact_product<DType::float64>(pass, i, entry - packed_size(i), begin, end);
      if (first_lane) total[entry] += product;
    }
  }
  __syncthreads();
  for (int entry = static_cast<int>(threadIdx.x); entry < entries; entry += kGramianThreads) {
    pass.partial[static_cast<std::int64_t>(blockIdx.x) * entries + entry] = total[entry];
  }
  finish_gramian(pass, entries);
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_GRAMIAN_FLOAT64_CUH
