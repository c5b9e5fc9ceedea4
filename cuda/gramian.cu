// Gramian of rows in device memory, in two stages: every block sums up its part, then a few warps add up the blocks.
#include <cuda_runtime.h>

#include <cstdint>

#include "elements.cuh"
#include "gramian.cuh"
#include "gramian_float64.cuh"
#include "gramian_pass.cuh"
#include "gramian_small.cuh"
#include "gramian_tiled.cuh"
#include "launch.cuh"
#include "warp_sums.cuh"

namespace bucket_moo::cuda {
namespace {

/// Blocks of Grid::fixed; enough for the small pieces that it is for.
constexpr int kFixedBlocks = 32;
/// Most blocks of Grid::device on a multiprocessor: what workspaces are made for.
constexpr int kSmallBlocks = 2048 / kGramianThreads;
constexpr int kTiledBlocks = 2;

/// One warp an entry: adds up the blocks, always in the same order.
__global__ void __launch_bounds__(kGramianThreads)
    finish_gramian(const __grid_constant__ GramianPass pass, const int small_blocks, const int tiled_blocks,
                   const bool add, double* const packed) {
  const int blocks = small_works(pass) ? small_blocks : tiled_blocks;
  const int entries = packed_size(objective_count(pass));
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(gridDim.x) * kGramianWarps;
  for (int entry = static_cast<int>(blockIdx.x * kGramianThreads + threadIdx.x) / kWarp; entry < entries;
       entry += warps) {
    const double* const partial = pass.partial + static_cast<std::int64_t>(entry) * blocks;
    double sum = 0.0;
#pragma unroll 8
    for (int b = lane; b < blocks; b += kWarp) sum += partial[b];
    sum = warp_sum(sum);
    if (lane == 0) packed[entry] = add ? packed[entry] + sum : sum;
  }
}

using Kernel = void (*)(GramianPass);

struct SmallKernel {
  Kernel kernel;
  std::size_t shared;
};

/// The kernel of k, 1 <= k <= kMaxSmall.
template <DType D, int K = kMaxSmall>
SmallKernel small_kernel(int k) {
  if constexpr (K > 1) {
    if (k < K) return small_kernel<D, K - 1>(k);
  }
  return {small_gramian<K, D>, kSmallShared<K>};
}

SmallKernel small_kernel(DType dtype, int k) {
  switch (dtype) {
    case DType::float32:
      return small_kernel<DType::float32>(k);
    case DType::bfloat16:
      return small_kernel<DType::bfloat16>(k);
    default:
      return small_kernel<DType::float16>(k);
  }
}

struct TiledKernel {
  Kernel kernel;
  std::size_t shared;
  std::int64_t piece;  ///< elements that a block takes at a time, at least
};

TiledKernel tiled_kernel(DType dtype) {
  constexpr std::size_t kShared = sizeof(TiledShared);
  switch (dtype) {
    case DType::float64:
      return {float64_gramian, kFloat64Shared, kFloat64Tile};
    case DType::float32:
      return {tiled_gramian<DType::float32>, kShared, kMinTileColumns};
    case DType::bfloat16:
      return {tiled_gramian<DType::bfloat16>, kShared, kMinTileColumns};
    default:
      return {tiled_gramian<DType::float16>, kShared, kMinTileColumns};
  }
}

/// How many blocks share `pieces` pieces of work.
cudaError_t choose_blocks(Grid grid, Kernel kernel, std::size_t shared, int most_each, std::int64_t pieces,
                          int* blocks) {
  int most = kFixedBlocks;
  if (grid == Grid::device) {
    int count = 0;
    int each = 0;
    cudaError_t status = multiprocessor_count(&count);
    if (status == cudaSuccess) status = allow_shared(kernel, shared);
    if (status == cudaSuccess) {
      status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kGramianThreads, shared);
    }
    if (status != cudaSuccess) return status;
    if (each == 0) return cudaErrorInvalidValue;
    most = count * (each < most_each ? each : most_each);
  }
  *blocks = static_cast<int>(pieces < 1 ? 1 : pieces < most ? pieces : most);
  return cudaSuccess;
}

constexpr std::int64_t pieces_of(std::int64_t size, std::int64_t piece) { return (size + piece - 1) / piece; }

}  // namespace

cudaError_t gramian_workspace_size(int k, std::size_t* bytes) {
  if (k < 0 || k > kMaxObjectives || bytes == nullptr) return cudaErrorInvalidValue;
  int count = 0;
  const cudaError_t status = multiprocessor_count(&count);
  if (status != cudaSuccess) return status;
  const auto size = [](int objectives, int blocks) {
    return sizeof(double) * static_cast<std::size_t>(packed_size(objectives)) * static_cast<std::size_t>(blocks);
  };
  const std::size_t sizes[] = {size(k < kMaxSmall ? k : kMaxSmall, kSmallBlocks * count), size(k, kTiledBlocks * count),
                               size(k, kFixedBlocks)};
  *bytes = 0;
  for (const std::size_t s : sizes) *bytes = s > *bytes ? s : *bytes;
  return cudaSuccess;
}

cudaError_t launch_gramian(const GramianArguments& arguments, cudaStream_t stream) {
  const DeviceRows& rows = arguments.rows;
  const bool with_table = arguments.table.header != nullptr;
  if (!valid(rows) || (!with_table && rows.count > kMaxObjectives)) return cudaErrorInvalidValue;
  if (rows.count == 0) return cudaSuccess;
  if (arguments.packed == nullptr || arguments.workspace == nullptr) return cudaErrorInvalidValue;
  const int most = rows.count < kMaxObjectives ? rows.count : kMaxObjectives;
  const int likely = with_table ? arguments.likely_k : rows.count;

  GramianPass pass{rows, arguments.table, 0, vector_aligned(rows), static_cast<double*>(arguments.workspace)};
  for (int r = 0; r < most; ++r) pass.rows.scattered[r] = rows.row(r);
  int small_blocks = 0;
  int tiled_blocks = 0;
  if (likely >= 1 && likely <= kMaxSmall && rows.dtype != DType::float64) {
    pass.likely_k = likely;
    const auto [kernel, shared] = small_kernel(rows.dtype, likely);
    const std::int64_t pieces = pieces_of(rows.size, kChunk * kGramianWarps);
    cudaError_t status = choose_blocks(arguments.grid, kernel, shared, kSmallBlocks, pieces, &small_blocks);
    if (status != cudaSuccess) return status;
    status = launch(kernel, {static_cast<unsigned>(small_blocks), kGramianThreads, shared}, stream, pass);
    if (status != cudaSuccess) return status;
  }
  if (with_table || pass.likely_k == 0) {
    const auto [kernel, shared, piece] = tiled_kernel(rows.dtype);
    const std::int64_t pieces = pieces_of(rows.size, piece);
    cudaError_t status = choose_blocks(arguments.grid, kernel, shared, kTiledBlocks, pieces, &tiled_blocks);
    if (status != cudaSuccess) return status;
    status = launch(kernel, {static_cast<unsigned>(tiled_blocks), kGramianThreads, shared}, stream, pass);
    if (status != cudaSuccess) return status;
  }
  const auto finish_blocks = static_cast<unsigned>(pieces_of(packed_size(most), kGramianWarps));
  return launch(finish_gramian, {finish_blocks, kGramianThreads}, stream, pass, small_blocks, tiled_blocks,
                arguments.add, arguments.packed);
}

}  // namespace bucket_moo::cuda
