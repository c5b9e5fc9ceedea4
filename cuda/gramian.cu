// Gramian of rows in device memory, in one kernel: every block sums up its part, the last ones add up the blocks.
#include <cuda_runtime.h>

#include <cstdint>

#include "elements.cuh"
#include "gramian.cuh"
#include "gramian_float64.cuh"
#include "gramian_pass.cuh"
#include "gramian_plan.cuh"
#include "gramian_small.cuh"
#include "gramian_tiled.cuh"
#include "launch.cuh"

namespace bucket_moo::cuda {
namespace {

/// Blocks of Grid::fixed; enough for the small pieces that it is for.
constexpr int kFixedBlocks = 32;
/// Blocks of the tiled kernels on a multiprocessor, at most.
constexpr int kTiledBlocks = 2;
constexpr int kMostResident = 3;
static_assert(small_resident(1) <= kMostResident && kTiledBlocks <= kMostResident);

__global__ void __launch_bounds__(kGramianThreads) float64_gramian(const __grid_constant__ GramianPass pass) {
  const int entries = packed_size(objective_count(pass));
  if (entries == 0) return;
  multiply_float64(pass, entries, std::int64_t{blockIdx.x} * kFloat64Tile, pass.rows.size,
                   std::int64_t{gridDim.x} * kFloat64Tile);
  finish_gramian(pass, entries);
}

using Kernel = void (*)(GramianPass);

struct GramianKernel {
  Kernel kernel;
  std::size_t shared;
};

/// The small kernel of k rows, 1 <= k <= kMaxSmall.
template <DType D, int K = kMaxSmall>
GramianKernel small_kernel(int k) {
  if constexpr (K > 2) {
    if (k <= K - 2) return small_kernel<D, K - 2>(k);
  }
  constexpr std::size_t kTiles = sizeof(TiledShared<FewTile>);
  return {small_gramian<K, D>, kSmallShared<K> > kTiles ? kSmallShared<K> : kTiles};
}

GramianKernel small_kernel(DType dtype, int k) {
  switch (dtype) {
    case DType::float32:
      return small_kernel<DType::float32>(k);
    case DType::bfloat16:
      return small_kernel<DType::bfloat16>(k);
    default:
      return small_kernel<DType::float16>(k);
  }
}

GramianKernel tiled_kernel(DType dtype) {
  constexpr std::size_t kShared = sizeof(TiledShared<LargeTile>);
  switch (dtype) {
    case DType::float64:
      return {float64_gramian, kFloat64Shared};
    case DType::float32:
      return {tiled_gramian<DType::float32>, kShared};
    case DType::bfloat16:
      return {tiled_gramian<DType::bfloat16>, kShared};
    default:
      return {tiled_gramian<DType::float16>, kShared};
  }
}

/// Most blocks of a launch, of which a multiprocessor takes `each` at a time.
cudaError_t most_blocks(Grid grid, int each, int* blocks) {
  *blocks = kFixedBlocks;
  if (grid == Grid::fixed) return cudaSuccess;
  int count = 0;
  const cudaError_t status = multiprocessor_count(&count);
  *blocks = count * each < kMaxGramianBlocks ? count * each : kMaxGramianBlocks;
  return status;
}

constexpr std::int64_t pieces_of(std::int64_t size, std::int64_t piece) { return (size + piece - 1) / piece; }

cudaError_t launch_small(GramianPass pass, Grid grid, cudaStream_t stream) {
  const DeviceRows& rows = pass.rows;
  const int k = (rows.count + 1) / 2 * 2;
  int most = 0;
  const cudaError_t status = most_blocks(grid, small_resident(k), &most);
  if (status != cudaSuccess) return status;
  pass.plan = plan_small(rows.size, static_cast<std::size_t>(element_bytes(rows.dtype)), k, most);
  const auto [kernel, shared] = small_kernel(rows.dtype, rows.count);
  return launch(kernel, {static_cast<unsigned>(pass.plan.blocks), kGramianThreads, shared}, stream, pass);
}

cudaError_t launch_tiled(const GramianPass& pass, Grid grid, cudaStream_t stream) {
  const auto [kernel, shared] = tiled_kernel(pass.rows.dtype);
  LaunchShape shape{0, kGramianThreads, shared};
  int each = 0;
  int most = 0;
  cudaError_t status = resident_blocks(kernel, shape, &each);
  if (status == cudaSuccess && each == 0) status = cudaErrorInvalidValue;
  if (status == cudaSuccess) status = most_blocks(grid, each < kTiledBlocks ? each : kTiledBlocks, &most);
  if (status != cudaSuccess) return status;
  const std::int64_t tiles =
      pieces_of(pass.rows.size, pass.rows.dtype == DType::float64 ? kFloat64Tile : LargeTile::kMinColumns);
  shape.blocks = static_cast<unsigned>(tiles < 1 ? 1 : tiles < most ? tiles : most);
  return launch(kernel, shape, stream, pass);
}

}  // namespace

cudaError_t gramian_workspace_size(int k, std::size_t* bytes) {
  if (k < 0 || k > kMaxObjectives || bytes == nullptr) return cudaErrorInvalidValue;
  int most = 0;
  const cudaError_t status = most_blocks(Grid::device, k <= kMaxSmall ? kMostResident : kTiledBlocks, &most);
  if (status != cudaSuccess) return status;
  const int blocks = most > kFixedBlocks ? most : kFixedBlocks;
  *bytes = sizeof(double) * static_cast<std::size_t>(packed_size(k)) * static_cast<std::size_t>(blocks);
  return cudaSuccess;
}

cudaError_t launch_gramian(const GramianArguments& arguments, cudaStream_t stream) {
  const DeviceRows& rows = arguments.rows;
  const bool with_table = arguments.table.header != nullptr;
  if (!valid(rows) || (!with_table && rows.count > kMaxObjectives)) return cudaErrorInvalidValue;
  if (rows.count == 0) return cudaSuccess;
  if (arguments.packed == nullptr || arguments.workspace == nullptr) return cudaErrorInvalidValue;
  if (arguments.tickets == nullptr) return cudaErrorInvalidValue;
  GramianPass pass{.rows = rows,
                   .table = arguments.table,
                   .aligned = vector_aligned(rows),
                   .add = arguments.add,
                   .plan = {},
                   .partial = static_cast<double*>(arguments.workspace),
                   .tickets = arguments.tickets,
                   .packed = arguments.packed};
  const int most = rows.count < kMaxObjectives ? rows.count : kMaxObjectives;
  for (int r = 0; r < most; ++r) pass.rows.scattered[r] = rows.row(r);
  const bool small =
      rows.count <= kMaxSmall && rows.dtype != DType::float64 && (!with_table || arguments.likely_k == rows.count);
  return small ? launch_small(pass, arguments.grid, stream) : launch_tiled(pass, arguments.grid, stream);
}

}  // namespace bucket_moo::cuda
