// Gramian of up to 16 rows: every thread keeps all of it in registers.
#ifndef BUCKET_MOO_CUDA_GRAMIAN_SMALL_CUH
#define BUCKET_MOO_CUDA_GRAMIAN_SMALL_CUH

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "elements.cuh"
#include "exact_product.cuh"
#include "gramian_pass.cuh"
#include "warp_sums.cuh"

namespace bucket_moo::cuda {

/// Elements that a warp adds up in float32.
inline constexpr int kChunk = 1024;

/// Least blocks that a multiprocessor has to hold, which bounds the registers: the most that each K allows without
/// spilling.
template <int K>
inline constexpr int kSmallResident = K <= 6   ? 3
                                      : K <= 9 ? 2
                                               : 1;

template <int K>
inline constexpr std::size_t kSmallShared = sizeof(double) * kGramianWarps * packed_size(K);

/// One warp's share of the Gramian: chunks of 1024 elements, each in float32, added up in float64.
template <int K, DType D>
class SmallGramian {
 public:
  static constexpr int kEntries = packed_size(K);
  using Sums = WarpSums<kEntries>;

  __device__ SmallGramian(const GramianPass& pass, int lane) : pass_(pass), lane_(lane) {
#pragma unroll
    for (int q = 0; q < Sums::kOwned; ++q) diagonal_ |= owned_row(q) >= 0 ? 1u << q : 0u;
  }

  __device__ void add_chunk(std::int64_t begin) {
    const std::int64_t size = pass_.rows.size;
    const std::int64_t end = begin + kChunk;
    float sum[kEntries] = {};
    std::uint32_t nonzero = 0;  // one bit a row
    if (pass_.aligned && end <= size) {
      multiply_vectors(begin, sum, nonzero);
    } else {
      multiply_elements(begin, sum, nonzero);
    }
    Sums::reduce(sum, lane_);
    bool doubtful = false;
    double part[Sums::kOwned];
#pragma unroll
    for (int q = 0; q < Sums::kOwned; ++q) {
      part[q] = static_cast<double>(sum[q]);
      doubtful = doubtful || ((diagonal_ >> q & 1u) != 0 && !trusted(sum[q]));
    }
    if (__any_sync(kAllLanes, doubtful)) repair(begin, end < size ? end : size, nonzero, part);
#pragma unroll
    for (int q = 0; q < Sums::kOwned; ++q) total_[q] += part[q];
  }

  /// \param partial [kEntries]
  __device__ void store(double* partial) const {
#pragma unroll
    for (int q = 0; q < Sums::kOwned; ++q) {
      const int entry = Sums::owned(lane_, q);
      if (entry >= 0) partial[entry] = total_[q];
    }
  }

 private:
  static constexpr int kVectors = kChunk / kWarp / kPerVector<D>;

  /// The row whose diagonal entry this lane owns as number q; -1: it is none.
  __device__ int owned_row(int q) const {
    const int entry = Sums::owned(lane_, q);
    int row = -1;
#pragma unroll
    for (int k = 0; k < K; ++k) row = entry == packed_index(k, k) ? k : row;
    return row;
  }

  /// Adds the products of one element of each row.
  static __device__ void multiply(const float (&x)[K], float (&sum)[kEntries]) {
#pragma unroll
    for (int i = 0; i < K; ++i) {
#pragma unroll
      for (int j = 0; j <= i; ++j) sum[packed_index(i, j)] = fmaf(x[i], x[j], sum[packed_index(i, j)]);
    }
  }

  /// The first of a lane's elements number v.
  __device__ std::int64_t place(std::int64_t begin, int v) const { return begin + (v * kWarp + lane_) * kPerVector<D>; }

  __device__ void multiply_vectors(std::int64_t begin, float (&sum)[kEntries], std::uint32_t& nonzero) const {
    // Of few rows, several vectors: enough of them must be under way to hide the memory's latency.
    [[maybe_unused]] constexpr int kUnroll = K <= 2 ? 4 : K <= 4 ? 2 : 1;
#pragma unroll kUnroll
    for (int v = 0; v < kVectors; ++v) {
      Vector vector[K];
#pragma unroll
      for (int k = 0; k < K; ++k) vector[k] = load_vector<D>(pass_.rows.scattered[k], place(begin, v));
#pragma unroll
      for (int k = 0; k < K; ++k) nonzero |= any_nonzero<D>(vector[k]) != 0 ? 1u << k : 0u;
#pragma unroll
      for (int e = 0; e < kPerVector<D>; ++e) {
        float x[K];
#pragma unroll
        for (int k = 0; k < K; ++k) x[k] = value_of<D>(vector[k], e);
        multiply(x, sum);
      }
    }
  }

  /// The same bits, for any alignment, and for the last chunk.
  __device__ void multiply_elements(std::int64_t begin, float (&sum)[kEntries], std::uint32_t& nonzero) const {
#pragma unroll 1
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll 1
      for (int e = 0; e < kPerVector<D>; ++e) {
        const std::int64_t at = place(begin, v) + e;
        float x[K];
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const Bits<D> bits =
              at < pass_.rows.size ? static_cast<const Bits<D>*>(pass_.rows.scattered[k])[at] : Bits<D>{};
          nonzero |= (bits & Element<D>::kMagnitude) != 0 ? 1u << k : 0u;
          x[k] = Element<D>::value(bits);
        }
        multiply(x, sum);
      }
    }
  }

  /// Replaces the entries of the chunk that float32 products may have spoilt. A row of zeros is as it should be.
  __device__ void repair(std::int64_t begin, std::int64_t end, std::uint32_t nonzero,
                         double (&part)[Sums::kOwned]) const {
    std::uint32_t bad = 0;
#pragma unroll
    for (int q = 0; q < Sums::kOwned; ++q) {
      const int row = owned_row(q);
      if (row >= 0 && !trusted(static_cast<float>(part[q]))) bad |= 1u << row;
    }
    bad = __reduce_or_sync(kAllLanes, bad) & __reduce_or_sync(kAllLanes, nonzero);
    if (bad == 0) return;
#pragma unroll 1
    for (int k = 0; k < K; ++k) {
      if ((bad >> k & 1u) != 0 && !finite_gradient<D>(pass_, k, begin, end)) bad &= ~(1u << k);
    }
#pragma unroll 1
    for (int i = 0; i < K; ++i) {
#pragma unroll 1
      for (int j = 0; j <= i; ++j) {
        if (((bad >> i | bad >> j) & 1u) == 0) continue;
        const double product = exact_product<D>(pass_, i, j, begin, end);
#pragma unroll
        for (int q = 0; q < Sums::kOwned; ++q) {
          if (Sums::owned(lane_, q) == packed_index(i, j)) part[q] = product;
        }
      }
    }
  }

  const GramianPass& pass_;
  int lane_;
  std::uint32_t diagonal_ = 0;  // bit q: what this lane owns as number q is on the diagonal
  double total_[Sums::kOwned] = {};
};

/// Works where K is the likely one and rows are objectives.
template <int K, DType D>
__global__ void __launch_bounds__(kGramianThreads, kSmallResident<K>)
    small_gramian(const __grid_constant__ GramianPass pass) {
  if (!small_works(pass)) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  SmallGramian<K, D> gramian(pass, static_cast<int>(threadIdx.x) % kWarp);
  const std::int64_t chunks = (pass.rows.size + kChunk - 1) / kChunk;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kGramianWarps;
#pragma unroll 1
  for (std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kGramianWarps + warp; c < chunks; c += stride) {
    gramian.add_chunk(c * kChunk);
  }

  constexpr int kEntries = packed_size(K);
  double* const of_warps = dynamic_shared<double>();
  gramian.store(of_warps + warp * kEntries);
  __syncthreads();
  for (int entry = static_cast<int>(threadIdx.x); entry < kEntries; entry += kGramianThreads) {
    double sum = 0.0;
    for (int w = 0; w < kGramianWarps; ++w) sum += of_warps[w * kEntries + entry];
    pass.partial[static_cast<std::int64_t>(entry) * gridDim.x + blockIdx.x] = sum;
  }
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_GRAMIAN_SMALL_CUH
