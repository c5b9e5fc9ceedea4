// Weighted sum of rows in device memory, to the same bits as on the host.
#include <cuda_runtime.h>

#include <cstdint>

#include "combine.cuh"
#include "elements.cuh"
#include "kernels/combine.hpp"
#include "kernels/normal_float32.hpp"
#include "launch.cuh"

namespace bucket_moo::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kResident = 4;   // blocks a multiprocessor holds at least
constexpr int kInFlight = 4;   // rows read before the first of them is used
constexpr int kWindow = 1024;  // rows whose coefficients are at hand at a time

/// The rows of a tail and where their sum goes.
struct CombineTail {
  const void* base = nullptr;
  std::int64_t pitch = 0;
  std::int64_t size = 0;
  void* out = nullptr;

  template <class T>
  __device__ const T* row(int r) const {
    return reinterpret_cast<const T*>(static_cast<const char*>(base) + r * pitch);
  }
};

struct CombinePass {
  DeviceRows rows;
  const double* coefficient;
  void* out;
  bool aligned;  ///< the rows can be accessed 16 bytes at a time, and `out` the elements of these
  CombineTail tail;
  const double* share;  ///< a row is read unless this and its coefficient are 0
};

struct CombineShared {
  double coefficient[kWindow];
  int row[kWindow];
  int count;
};

/// The sum in the accumulation type T; multiplied and added in two roundings, as on the host.
template <DType D, DType Out, class T>
class Combination {
 public:
  __device__ explicit Combination(const CombinePass& pass)
      : pass_(pass), shared_(*dynamic_shared<CombineShared>()), thread_(static_cast<int>(threadIdx.x)) {}

  /// From the last tile to the first: the end of the rows is still cached from the Gramian.
  __device__ void run() {
    constexpr int kTile = kThreads * kPerVector<D>;
    const std::int64_t size = pass_.rows.size;
    if (pass_.rows.count <= kWindow) list_rows(0);
    for (std::int64_t tile = (size + kTile - 1) / kTile - 1 - blockIdx.x; tile >= 0; tile -= gridDim.x) {
      const std::int64_t at = tile * kTile + thread_ * kPerVector<D>;
      const bool whole = pass_.aligned && at + kPerVector<D> <= size;
      T sum[kPerVector<D>];
#pragma unroll
      for (int e = 0; e < kPerVector<D>; ++e) sum[e] = static_cast<T>(-0.0);  // changes nothing it is added to
      bool any = false;
      for (int first = 0; first < pass_.rows.count; first += kWindow) {
        if (pass_.rows.count > kWindow) list_rows(first);
        any = any || shared_.count > 0;
        if (at >= size) continue;
        for (int listed = 0; listed < shared_.count; listed += kInFlight) add(listed, at, whole, sum);
      }
      if (at < size) store(at, whole, any, sum);
    }
    run_tail();
  }

 private:
  /// A thread an element, from the last block on, which has the fewest tiles. A loop of its own: the one above has no
  /// registers to spare.
  __device__ void run_tail() {
    const CombineTail& tail = pass_.tail;
    for (std::int64_t begin = static_cast<std::int64_t>(gridDim.x - 1 - blockIdx.x) * kThreads; begin < tail.size;
         begin += static_cast<std::int64_t>(gridDim.x) * kThreads) {
      const std::int64_t at = begin + thread_;
      T sum = static_cast<T>(-0.0);
      bool any = false;
      for (int first = 0; first < pass_.rows.count; first += kWindow) {
        if (pass_.rows.count > kWindow) list_rows(first);
        any = any || shared_.count > 0;
        if (at >= tail.size) continue;
#pragma unroll 4
        for (int listed = 0; listed < shared_.count; ++listed) {
          const T value = static_cast<T>(Element<D>::value(tail.row<Bits<D>>(shared_.row[listed])[at]));
          sum = sum + static_cast<T>(shared_.coefficient[listed]) * value;
        }
      }
      if (at < tail.size) {
        static_cast<Bits<Out>*>(tail.out)[at] = any ? Element<Out>::rounded(static_cast<float>(sum)) : Bits<Out>{};
      }
    }
  }

  /// Puts the rows from `first` on that are read into shared memory, in their order.
  __device__ void list_rows(int first) {
    __syncthreads();  // the last list has been read
    if (thread_ < kWarp) {
      const int end = first + kWindow < pass_.rows.count ? first + kWindow : pass_.rows.count;
      int count = 0;
      for (int begin = first; begin < end; begin += kWarp) {
        const int r = begin + thread_;
        const double c = r < end ? pass_.coefficient[r] : 0.0;
        const bool reads = c != 0.0 || (r < end && pass_.share[r] != 0.0);
        const unsigned listed = __ballot_sync(kAllLanes, reads);
        const int place = count + __popc(listed & ((1u << thread_) - 1u));
        if (reads) {
          shared_.coefficient[place] = c;
          shared_.row[place] = r;
        }
        count += __popc(listed);
      }
      if (thread_ == 0) shared_.count = count;
    }
    __syncthreads();
  }

  __device__ void add(int listed, std::int64_t at, bool whole, T (&sum)[kPerVector<D>]) const {
    const int count = shared_.count - listed;
    Vector vector[kInFlight];
#pragma unroll
    for (int g = 0; g < kInFlight; ++g) {
      if (g >= count) break;
      const void* const row = pass_.rows.row(shared_.row[listed + g]);
      vector[g] = whole ? load_vector<D>(row, at) : load_elements<D>(row, at, pass_.rows.size);
    }
#pragma unroll
    for (int g = 0; g < kInFlight; ++g) {
      if (g >= count) break;
      const T coefficient = static_cast<T>(shared_.coefficient[listed + g]);
#pragma unroll
      for (int e = 0; e < kPerVector<D>; ++e) sum[e] = sum[e] + coefficient * static_cast<T>(value_of<D>(vector[g], e));
    }
  }

  __device__ void store(std::int64_t at, bool whole, bool any, const T (&sum)[kPerVector<D>]) const {
    Vector vector;
#pragma unroll
    for (int e = 0; e < kPerVector<D>; ++e) {
      set_bits<Out>(vector, e, any ? Element<Out>::rounded(static_cast<float>(sum[e])) : Bits<Out>{});
    }
    if (whole) {
      store_first<Out, kPerVector<D>>(pass_.out, at, vector);
    } else {
      store_elements<Out, kPerVector<D>>(pass_.out, at, pass_.rows.size, vector);
    }
  }

  const CombinePass& pass_;
  CombineShared& shared_;
  int thread_;
};

/// Each element is read from all rows by the thread that writes it, before it writes: `out` may be a row.
template <DType D, DType Out>
__device__ void combine(const CombinePass& pass) {
  bool wide = false;
  for (int r = static_cast<int>(threadIdx.x); r < pass.rows.count; r += kThreads) {
    wide = wide || !normal_float32(pass.coefficient[r]);
  }
  if (__syncthreads_or(wide ? 1 : 0) != 0) {
    Combination<D, Out, double>(pass).run();
  } else {
    Combination<D, Out, float>(pass).run();
  }
}

template <DType D>
__global__ void __launch_bounds__(kThreads, kResident) combine_kernel(const __grid_constant__ CombinePass pass) {
  combine<D, D>(pass);
}

/// From rows of float32.
template <DType Out>
__global__ void __launch_bounds__(kThreads, kResident) combine_float32_to(const __grid_constant__ CombinePass pass) {
  combine<DType::float32, Out>(pass);
}

/// A thread an element, of the rows and then of the tail.
__global__ void __launch_bounds__(kThreads) combine_float64(const __grid_constant__ CombinePass pass) {
  const std::int64_t size = pass.rows.size + pass.tail.size;
  for (std::int64_t place = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; place < size;
       place += static_cast<std::int64_t>(gridDim.x) * kThreads) {
    const bool in_tail = place >= pass.rows.size;
    const std::int64_t at = in_tail ? place - pass.rows.size : place;
    double sum = -0.0;
    bool any = false;
    for (int r = 0; r < pass.rows.count; ++r) {
      const double coefficient = pass.coefficient[r];
      if (coefficient == 0.0 && pass.share[r] == 0.0) continue;
      any = true;
      const double* const row = in_tail ? pass.tail.row<double>(r) : static_cast<const double*>(pass.rows.row(r));
      sum = sum + coefficient * row[at];
    }
    static_cast<double*>(in_tail ? pass.tail.out : pass.out)[at] = any ? sum : 0.0;
  }
}

using Kernel = void (*)(CombinePass);

Kernel kernel_of(DType dtype, DType out_dtype) {
  if (dtype != out_dtype) {
    return out_dtype == DType::bfloat16 ? combine_float32_to<DType::bfloat16> : combine_float32_to<DType::float16>;
  }
  switch (dtype) {
    case DType::float64:
      return combine_float64;
    case DType::float32:
      return combine_kernel<DType::float32>;
    case DType::bfloat16:
      return combine_kernel<DType::bfloat16>;
    default:
      return combine_kernel<DType::float16>;
  }
}

}  // namespace

cudaError_t launch_combine(const DeviceRows& rows, const double* coefficient, void* out, cudaStream_t stream) {
  return launch_combine(rows, out, {}, nullptr, coefficient, stream);
}

cudaError_t launch_combine(const DeviceRows& rows, void* out, const DeviceRows& tail, void* tail_out,
                           const double* coefficient, cudaStream_t stream) {
  return launch_combine(rows, out, tail, tail_out, rows.dtype, coefficient, stream);
}

cudaError_t launch_combine(const DeviceRows& rows, void* out, const DeviceRows& tail, void* tail_out, DType out_dtype,
                           const double* coefficient, cudaStream_t stream, const double* share) {
  if (!combines_to(rows.dtype, out_dtype)) return cudaErrorInvalidValue;
  if (!valid(rows) || !valid(tail) || (rows.count > 0 && coefficient == nullptr)) return cudaErrorInvalidValue;
  if (rows.size > 0 && out == nullptr) return cudaErrorInvalidValue;
  const bool like_rows = tail.base != nullptr && tail.count == rows.count && tail.dtype == rows.dtype;
  if (tail.size > 0 && (!like_rows || tail_out == nullptr)) return cudaErrorInvalidValue;
  if (rows.size + tail.size == 0) return cudaSuccess;
  const std::int64_t stored = kVectorBytes / element_bytes(rows.dtype) * element_bytes(out_dtype);
  const bool aligned =
      vector_aligned(rows) && reinterpret_cast<std::uintptr_t>(out) % static_cast<std::uintptr_t>(stored) == 0;
  const CombinePass pass{rows,
                         coefficient,
                         out,
                         aligned,
                         {tail.base, tail.pitch, tail.size, tail_out},
                         share == nullptr ? coefficient : share};
  const Kernel kernel = kernel_of(rows.dtype, out_dtype);

  const std::int64_t tile = kThreads * kVectorBytes / element_bytes(rows.dtype);
  const std::int64_t tiles = (rows.size + tail.size + tile - 1) / tile;
  LaunchShape shape{0, kThreads, sizeof(CombineShared)};
  const cudaError_t status = fill_device(kernel, tiles, &shape);
  if (status != cudaSuccess) return status;
  return launch(kernel, shape, stream, pass);
}

}  // namespace bucket_moo::cuda
