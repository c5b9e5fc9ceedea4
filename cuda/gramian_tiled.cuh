// Gramian of up to 64 objectives, of one row or of several: a tile of float32 in shared memory, multiplied in squares
// of objectives.
#ifndef BUCKET_MOO_CUDA_GRAMIAN_TILED_CUH
#define BUCKET_MOO_CUDA_GRAMIAN_TILED_CUH

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "elements.cuh"
#include "exact_product.cuh"
#include "gramian_pass.cuh"
#include "warp_sums.cuh"

namespace bucket_moo::cuda {

inline constexpr int kMaxTileColumns = 1024;
inline constexpr int kColumnStep = 2 * kWarp;  ///< two columns a lane

/// Sizes of a tile, and of the squares of objectives whose products a lane has for columns of its own; how many vectors
/// a lane reads before it uses the first; and whether the rows may be the objectives.
template <int Floats, int Objectives, int Side, int InFlight, bool RowsToo>
struct TileSize {
  static constexpr int kInFlight = InFlight;
  static constexpr bool kRowsToo = RowsToo;
  static constexpr int kFloats = Floats;
  static constexpr int kMaxRows = Objectives;
  static constexpr int kSide = Side;
  static constexpr int kSquare = Side * Side;
  static constexpr int kMinColumns = Floats / Objectives;

  /// Parts of the columns, so that the squares of few objectives occupy all warps.
  BUCKET_MOO_HD static constexpr int segments(int sides) {
    return sides == 1 ? 8 : sides <= 3 ? 4 : sides == 4 ? 2 : 1;
  }

  BUCKET_MOO_HD static constexpr int most_items() {
    int most = 0;
    for (int sides = 1; sides <= Objectives / Side; ++sides) {
      const int items = packed_size(sides) * segments(sides);
      most = items > most ? items : most;
    }
    return most;
  }
};
/// 48 kB of float32: two blocks fit into the shared memory of an sm_80.
using LargeTile = TileSize<12288, kMaxObjectives, 8, 4, true>;
/// For the small kernel: with the registers that it has, and little shared memory.
using FewTile = TileSize<4096, kMaxSmall, 4, 2, false>;

/// How a tile of k objectives is laid out and cut into items, of which each belongs to one warp.
template <class Size>
struct TileShape {
  int rows;      ///< k, up to a multiple of kSide
  int columns;   ///< elements, a multiple of kColumnStep
  int segments;  ///< parts of the columns
  int items;     ///< squares of the lower triangle, times segments

  __device__ explicit TileShape(int k) {
    const int sides = (k + Size::kSide - 1) / Size::kSide;
    rows = sides * Size::kSide;
    segments = Size::segments(sides);
    const int step = segments * kColumnStep;
    columns = Size::kFloats / rows / step * step;
    columns = columns < kMaxTileColumns ? columns : kMaxTileColumns;
    items = packed_size(sides) * segments;
  }
};

template <class Size>
struct TiledShared {
  float tile[Size::kFloats];                         ///< [rows, columns]
  double total[Size::most_items() * Size::kSquare];  ///< [items, kSide, kSide]
  int bad[kMaxObjectives];  ///< whether float32 cannot square this tile's part of the objective's gradient
};

/// A block's share of the Gramian.
template <class Size, DType D>
class TiledGramian {
 public:
  /// \param end      of the elements that are read
  /// \param aligned  whether those of the tiles can be read 16 bytes at a time
  __device__ TiledGramian(const GramianPass& pass, int k, std::int64_t end, bool aligned)
      : pass_(pass),
        shared_(*dynamic_shared<TiledShared<Size>>()),
        k_(k),
        end_(end),
        aligned_(aligned),
        one_to_one_(rows_are_objectives(pass)),
        shape_(k),
        warp_(static_cast<int>(threadIdx.x) / kWarp),
        lane_(static_cast<int>(threadIdx.x) % kWarp) {
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = k_ * shape_.columns + thread; i < shape_.rows * shape_.columns; i += kGramianThreads) {
      shared_.tile[i] = 0.0f;
    }
    for (int i = thread; i < shape_.items * kSquare; i += kGramianThreads) shared_.total[i] = 0.0;
    for (int i = thread; i < kMaxObjectives; i += kGramianThreads) shared_.bad[i] = 0;
  }

  __device__ int columns() const { return shape_.columns; }

  __device__ void add_tile(std::int64_t begin) {
    const std::int64_t end = begin + shape_.columns < end_ ? begin + shape_.columns : end_;
    __syncthreads();  // the last tile has been multiplied
#pragma unroll 1
    for (int k = warp_; k < k_; k += kGramianWarps) fill_row(k, begin, end);
    __syncthreads();
    const std::uint64_t bad = static_cast<std::uint64_t>(__ballot_sync(kAllLanes, shared_.bad[lane_] != 0)) |
                              static_cast<std::uint64_t>(__ballot_sync(kAllLanes, shared_.bad[lane_ + kWarp] != 0))
                                  << 32;
#pragma unroll 1
    for (int item = warp_; item < shape_.items; item += kGramianWarps) multiply(item, begin, end, bad);
  }

  __device__ void store() const {
    __syncthreads();
    for (int entry = static_cast<int>(threadIdx.x); entry < packed_size(k_); entry += kGramianThreads) {
      const int i = packed_row(entry);
      const int j = entry - packed_size(i);
      const int square = packed_index(i / kSide, j / kSide) * shape_.segments;
      double sum = 0.0;
      for (int s = 0; s < shape_.segments; ++s) {
        sum += shared_.total[(square + s) * kSquare + i % kSide * kSide + j % kSide];
      }
      pass_.partial[static_cast<std::int64_t>(blockIdx.x) * packed_size(k_) + entry] = sum;
    }
  }

 private:
  static constexpr int kSide = Size::kSide;
  static constexpr int kSquare = Size::kSquare;
  static constexpr int kQuads = kPerVector<D> / 4;
  using Sums = WarpSums<kSquare>;

  template <bool Whole>
  __device__ Vector load(const void* row, std::int64_t at) const {
    if constexpr (Whole) {
      return load_vector<D>(row, at);
    } else {
      return load_elements<D>(row, at, end_);
    }
  }

  /// Puts a vector's elements into the tile, and sums up their squares. The second half of a 16-bit vector goes half a
  /// row further on: a Gramian does not mind, and there are no bank conflicts.
  __device__ void put(const float (&x)[kPerVector<D>], float* row, int v, float& squares) const {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      *reinterpret_cast<float4*>(row + q * (shape_.columns / kQuads) + 4 * v) =
          make_float4(x[4 * q], x[4 * q + 1], x[4 * q + 2], x[4 * q + 3]);
    }
#pragma unroll
    for (int e = 0; e < kPerVector<D>; ++e) squares = fmaf(x[e], x[e], squares);
  }

  /// Writes vectors [first, last) of objective k's gradient to the tile, those of this lane. Whole ones are aligned.
  template <bool Whole>
  __device__ void fill_vectors(int k, std::int64_t begin, int first, int last, float& squares,
                               std::uint32_t& nonzero) const {
    float* const row = shared_.tile + k * shape_.columns;
    if (Size::kRowsToo && one_to_one_) {
      [[maybe_unused]] constexpr int kUnroll = Whole ? Size::kInFlight : 1;
#pragma unroll kUnroll
      for (int v = first + lane_; v < last; v += kWarp) {
        const Vector vector = load<Whole>(pass_.rows.scattered[k], begin + v * kPerVector<D>);
        nonzero |= any_nonzero<D>(vector);
        float x[kPerVector<D>];
#pragma unroll
        for (int e = 0; e < kPerVector<D>; ++e) x[e] = value_of<D>(vector, e);
        put(x, row, v, squares);
      }
    } else {
      const int end = pass_.table.begin[k + 1];
#pragma unroll 1
      for (int v = first + lane_; v < last; v += kWarp) {
        float x[kPerVector<D>] = {};
        [[maybe_unused]] constexpr int kUnroll = Whole ? Size::kInFlight : 1;
#pragma unroll kUnroll
        for (int m = pass_.table.begin[k]; m < end; ++m) {
          const int r = pass_.table.member[m];
          const float share = static_cast<float>(pass_.table.share[r]);
          const Vector vector = load<Whole>(pass_.rows.row(r), begin + v * kPerVector<D>);
          nonzero |= any_nonzero<D>(vector);
#pragma unroll
          for (int e = 0; e < kPerVector<D>; ++e) x[e] = fmaf(share, value_of<D>(vector, e), x[e]);
        }
        put(x, row, v, squares);
      }
    }
  }

  /// Writes elements [begin, end) of objective k's gradient to the tile, zeros behind them, and whether they are bad.
  __device__ void fill_row(int k, std::int64_t begin, std::int64_t end) {
    const int vectors = shape_.columns / kPerVector<D>;
    // A lane has the same vectors whether they are read whole or not: of 32 side by side all are, or none.
    const int count = static_cast<int>(end - begin) / kPerVector<D>;
    const int whole = !aligned_ ? 0 : end - begin == shape_.columns ? vectors : count / kWarp * kWarp;
    float squares = 0.0f;
    std::uint32_t nonzero = 0;
    fill_vectors<true>(k, begin, 0, whole, squares, nonzero);
    fill_vectors<false>(k, begin, whole, vectors, squares, nonzero);
    squares = warp_sum(squares);
    bool bad = __any_sync(kAllLanes, nonzero != 0) && !trusted(squares);
    if (bad) bad = finite_gradient<D>(pass_, k, begin, end);
    if (lane_ == 0) shared_.bad[k] = bad ? 1 : 0;
  }

  /// Adds the tile's part of an item.
  __device__ void multiply(int item, std::int64_t begin, std::int64_t end, std::uint64_t bad) {
    const int square = item / shape_.segments;
    const int segment = item % shape_.segments;
    const int a = packed_row(square);
    const int b = square - packed_size(a);
    const int width = shape_.columns / shape_.segments;
    const int pitch = shape_.columns;
    const float* const rows_a = shared_.tile + a * kSide * pitch + segment * width;
    const float* const rows_b = shared_.tile + b * kSide * pitch + segment * width;
    float sum[kSquare] = {};
#pragma unroll 1
    for (int c = 2 * lane_; c < width; c += kColumnStep) {
      float2 x[kSide];
#pragma unroll
      for (int m = 0; m < kSide; ++m) x[m] = *reinterpret_cast<const float2*>(rows_a + m * pitch + c);
#pragma unroll
      for (int n = 0; n < kSide; ++n) {
        const float2 y = *reinterpret_cast<const float2*>(rows_b + n * pitch + c);
#pragma unroll
        for (int m = 0; m < kSide; ++m) {
          float& s = sum[m * kSide + n];
          s = fmaf(x[m].y, y.y, fmaf(x[m].x, y.x, s));
        }
      }
    }
    Sums::reduce(sum, lane_);
    double part[Sums::kOwned];
#pragma unroll
    for (int q = 0; q < Sums::kOwned; ++q) part[q] = static_cast<double>(sum[q]);
    constexpr std::uint32_t kOfSide = (1u << kSide) - 1u;
    const std::uint32_t bad_a = static_cast<std::uint32_t>(bad >> (a * kSide)) & kOfSide;
    const std::uint32_t bad_b = static_cast<std::uint32_t>(bad >> (b * kSide)) & kOfSide;
    if ((bad_a | bad_b) != 0) repair(a, b, bad_a, bad_b, segment, begin, end, part);
    double* const total = shared_.total + item * kSquare;
#pragma unroll
    for (int q = 0; q < Sums::kOwned; ++q) {
      const int entry = Sums::owned(lane_, q);
      if (entry >= 0) total[entry] += part[q];
    }
  }

  /// Replaces the products with bad rows: by those over the whole tile in the first segment, by zeros in the others.
  __device__ void repair(int a, int b, std::uint32_t bad_a, std::uint32_t bad_b, int segment, std::int64_t begin,
                         std::int64_t end, double (&part)[Sums::kOwned]) const {
#pragma unroll 1
    for (int entry = 0; entry < kSquare; ++entry) {
      const int m = entry / kSide;
      const int n = entry % kSide;
      const int i = a * kSide + m;
      const int j = b * kSide + n;
      if (((bad_a >> m | bad_b >> n) & 1u) == 0 || i >= k_ || j > i) continue;
      const double product = segment == 0 ? exact_product<D>(pass_, i, j, begin, end) : 0.0;
#pragma unroll
      for (int q = 0; q < Sums::kOwned; ++q) {
        if (Sums::owned(lane_, q) == entry) part[q] = product;
      }
    }
  }

  const GramianPass& pass_;
  TiledShared<Size>& shared_;
  int k_;
  std::int64_t end_;
  bool aligned_;
  bool one_to_one_;
  TileShape<Size> shape_;
  int warp_;
  int lane_;
};

template <class Size, DType D>
__device__ void multiply_tiles(const GramianPass& pass) {
  const int k = objective_count(pass);
  if (k == 0) return;
  TiledGramian<Size, D> gramian(pass, k, pass.rows.size, pass.aligned);
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * gramian.columns();
#pragma unroll 1
  for (std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * gramian.columns(); begin < pass.rows.size;
       begin += stride) {
    gramian.add_tile(begin);
  }
  gramian.store();
  finish_gramian(pass, packed_size(k));
}

template <DType D>
__global__ void __launch_bounds__(kGramianThreads, 2) tiled_gramian(const __grid_constant__ GramianPass pass) {
  multiply_tiles<LargeTile, D>(pass);
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_GRAMIAN_TILED_CUH
