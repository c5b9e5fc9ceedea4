// Sums over the lanes of a warp, in an order that is always the same.
#ifndef BUCKET_MOO_CUDA_WARP_SUMS_CUH
#define BUCKET_MOO_CUDA_WARP_SUMS_CUH

#include <cuda_runtime.h>

#include "launch.cuh"

namespace bucket_moo::cuda {

/// The sum over the lanes, alike on all of them.
template <class T>
__device__ T warp_sum(T x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

/// Sums of N values over the lanes, each owned by one lane afterwards: halves are swapped and added, so that 32 values
/// cost 31 shuffles, where 32 sums cost 160.
template <int N>
struct WarpSums {
  /// Values that a lane owns, some of which may not exist.
  static constexpr int kOwned = (N + kWarp - 1) / kWarp;

  /// \param value  in: this lane's summands; out: the first kOwned are the sums that it owns
  static __device__ void reduce(float (&value)[N], int lane) { step<N, kWarp / 2>(value, lane); }

  /// Which of the N sums is a lane's number q; -1: none.
  static __device__ int owned(int lane, int q) { return index<N, kWarp / 2>(lane, q); }

 private:
  template <int Count, int Offset>
  static __device__ void step(float (&value)[N], int lane) {
    if constexpr (Offset > 0) {
      constexpr int kHalf = (Count + 1) / 2;
      const bool upper = (lane & Offset) != 0;
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        const float high = i + kHalf < Count ? value[i + kHalf < N ? i + kHalf : 0] : 0.0f;
        const float kept = upper ? high : value[i];
        const float sent = upper ? value[i] : high;
        value[i] = kept + __shfl_xor_sync(kAllLanes, sent, Offset);
      }
      step<kHalf, Offset / 2>(value, lane);
    }
  }

  template <int Count, int Offset>
  static __device__ int index(int lane, int q) {
    if constexpr (Offset > 0) {
      constexpr int kHalf = (Count + 1) / 2;
      const int inner = index<kHalf, Offset / 2>(lane, q);
      const int outer = inner + ((lane & Offset) != 0 ? kHalf : 0);
      return inner < 0 || outer >= Count ? -1 : outer;
    } else {
      return q < Count ? q : -1;
    }
  }
};

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_WARP_SUMS_CUH
