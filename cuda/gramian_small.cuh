// Gramian of up to 16 rows: every thread keeps all of it in registers.
#ifndef BUCKET_MOO_CUDA_GRAMIAN_SMALL_CUH
#define BUCKET_MOO_CUDA_GRAMIAN_SMALL_CUH

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "elements.cuh"
#include "exact_product.cuh"
#include "gramian_pass.cuh"
#include "gramian_tiled.cuh"
#include "warp_sums.cuh"

namespace bucket_moo::cuda {

/// Doubles of shared memory in which a warp adds up what its lanes own: lane l has number q at q * kWarp + l. Registers
/// are short.
template <int K>
inline constexpr int kSmallTotals = WarpSums<packed_size(K)>::kOwned * kWarp;

template <int K>
inline constexpr std::size_t kSmallShared = sizeof(double) * kGramianWarps * kSmallTotals<K>;

/// One warp's share of the Gramian: chunks of up to 1024 elements, each in float32, added up in float64. A warp reads
/// in steps of 16 bytes a lane. The last step, if the row ends in it, and rows that are not aligned are read by
/// elements. Of an odd number of rows the last of the K is zero.
template <int K, DType D>
class SmallGramian {
 public:
  static constexpr int kStep = small_step(sizeof(Bits<D>));
  static constexpr int kMostSteps = small_most_steps(sizeof(Bits<D>));
  static constexpr int kEntries = packed_size(K);
  using Sums = WarpSums<kEntries>;

  /// \param totals  [kSmallTotals<K>] the warp's
  __device__ SmallGramian(const GramianPass& pass, double* totals)
      : pass_(pass), lane_(static_cast<int>(threadIdx.x) % kWarp), even_(pass.rows.count == K), total_(totals + lane_) {
#pragma unroll
    for (int q = 0; q < Sums::kOwned; ++q) {
      total_[q * kWarp] = 0.0;
      const int row = owned_row(q);
      diagonal_ |= row >= 0 && has(row) ? 1u << q : 0u;
    }
  }

  /// Adds `steps` steps from number `first` on; the rows may end in the last of them.
  __device__ void add_chunk(std::int64_t first, int steps) {
    const std::int64_t size = pass_.rows.size;
    const std::int64_t begin = first * kStep;
    const std::int64_t end = begin + steps * kStep;
    const int whole = end <= size ? steps : steps - 1;
    float sum[kEntries] = {};
    std::uint32_t nonzero = 0;  // one bit a row
    if (pass_.aligned) multiply_vectors(begin, whole, sum, nonzero);
    multiply_elements(begin, pass_.aligned ? whole : 0, whole, steps, sum, nonzero);
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
    for (int q = 0; q < Sums::kOwned; ++q) total_[q * kWarp] += part[q];
  }

 private:
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

  /// Whether row k is there.
  __device__ bool has(int k) const { return k + 1 < K || even_; }

  /// Adds `whole` steps from element `begin` on.
  __device__ void multiply_vectors(std::int64_t begin, int whole, float (&sum)[kEntries],
                                   std::uint32_t& nonzero) const {
    [[maybe_unused]] constexpr int kUnroll = small_unroll(K);
#pragma unroll kUnroll
    for (int step = 0; step < whole; ++step) {
      const std::int64_t at = begin + step * kStep + lane_ * kPerVector<D>;
      Vector vector[K];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        if (has(k)) vector[k] = load_vector<D>(pass_.rows.scattered[k], at);
      }
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

  /// Adds steps [first, steps), to the same bits for any alignment. Of step number `whole`, in which the rows end, a
  /// lane has every 32nd element, of others as many side by side as in 16 bytes. Several are read at a time, of all
  /// rows.
  __device__ void multiply_elements(std::int64_t begin, int first, int whole, int steps, float (&sum)[kEntries],
                                    std::uint32_t& nonzero) const {
    constexpr int kTogether = K <= 12 ? 4 : 2;  // as registers allow
    constexpr int kParts = kPerVector<D> / kTogether;
#pragma unroll 1
    for (int part = first * kParts; part < steps * kParts; ++part) {
      const bool last = part / kParts == whole;
      const int stride = last ? kWarp : 1;
      const int of_step = part % kParts * kTogether * stride + lane_ * (last ? 1 : kPerVector<D>);
      const std::int64_t from = begin + part / kParts * kStep + of_step;
      Bits<D> bits[kTogether][K];
#pragma unroll
      for (int e = 0; e < kTogether; ++e) {
        const std::int64_t at = from + e * stride;
#pragma unroll
        for (int k = 0; k < K; ++k) {
          bits[e][k] =
              at < pass_.rows.size && has(k) ? static_cast<const Bits<D>*>(pass_.rows.scattered[k])[at] : Bits<D>{};
        }
      }
#pragma unroll
      for (int e = 0; e < kTogether; ++e) {
        float x[K];
#pragma unroll
        for (int k = 0; k < K; ++k) {
          nonzero |= (bits[e][k] & Element<D>::kMagnitude) != 0 ? 1u << k : 0u;
          x[k] = Element<D>::value(bits[e][k]);
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
    for (int k = 0; k < pass_.rows.count; ++k) {
      if ((bad >> k & 1u) != 0 && !finite_gradient<D>(pass_, k, begin, end)) bad &= ~(1u << k);
    }
#pragma unroll 1
    for (int i = 0; i < pass_.rows.count; ++i) {
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
  bool even_;                   ///< all K rows are there
  std::uint32_t diagonal_ = 0;  // bit q: what this lane owns as number q is on the diagonal, of a row that is there
  double* total_;
};

/// Not inlined, so that it is optimised once for all K.
template <DType D>
__device__ __noinline__ void multiply_few_tiles(const GramianPass& pass) {
  multiply_tiles<FewTile, D>(pass);
}

/// Of K rows, or of K - 1. Where objectives turn out to be other than the rows, the same by tiles, which is slower:
/// reading several rows an objective takes longer than the tiles' multiplications.
template <int K, DType D>
__global__ void __launch_bounds__(kGramianThreads, small_resident(K))
    small_gramian(const __grid_constant__ GramianPass pass) {
  if (objective_count(pass) != pass.rows.count || !rows_are_objectives(pass)) {
    multiply_few_tiles<D>(pass);
    return;
  }
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  using Gramian = SmallGramian<K, D>;
  constexpr int kTotals = kSmallTotals<K>;
  double* const totals = dynamic_shared<double>();  // [kGramianWarps, kTotals]
  Gramian gramian(pass, totals + warp * kTotals);
  const std::int64_t number = static_cast<std::int64_t>(blockIdx.x) * kGramianWarps + warp;
  const std::int64_t before = number * pass.plan.units + (number < pass.plan.more ? number : pass.plan.more);
  const std::int64_t units = pass.plan.units + (number < pass.plan.more ? 1 : 0);
  const std::int64_t steps = (pass.rows.size + Gramian::kStep - 1) / Gramian::kStep;
  const std::int64_t end = (before + units) * small_unroll(K) < steps ? (before + units) * small_unroll(K) : steps;
#pragma unroll 1
  for (std::int64_t step = before * small_unroll(K); step < end; step += Gramian::kMostSteps) {
    gramian.add_chunk(step, static_cast<int>(end - step < Gramian::kMostSteps ? end - step : Gramian::kMostSteps));
  }

  __syncthreads();
  const int entries = packed_size(pass.rows.count);
  for (int place = static_cast<int>(threadIdx.x); place < kTotals; place += kGramianThreads) {
    const int entry = Gramian::Sums::owned(place % kWarp, place / kWarp);
    if (entry < 0 || entry >= entries) continue;
    double sum = 0.0;
    for (int w = 0; w < kGramianWarps; ++w) sum += totals[w * kTotals + place];
    pass.partial[static_cast<std::int64_t>(blockIdx.x) * entries + entry] = sum;
  }
  finish_gramian(pass, entries);
}

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_GRAMIAN_SMALL_CUH
