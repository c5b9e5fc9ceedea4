// Running sums of weighted rows in device memory, to the same bits as on the host.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "accumulate.cuh"
#include "elements.cuh"
#include "kernels/accumulate.hpp"
#include "launch.cuh"

namespace bucket_moo::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kResident = 4;   // blocks a multiprocessor holds at least
constexpr int kInFlight = 4;   // rows read before the first of them is used
constexpr int kWindow = 2048;  // rows that are listed at a time

struct AccumulatePass {
  AccumulateArguments of;
  bool aligned;  ///< the rows and the sums can be accessed 16 bytes at a time
};

/// What a thread holds of a row, and of a sum: 16 bytes of the row.
template <DType D>
struct Piece {
  using Sum = float;
  static constexpr int kSize = kPerVector<D>;

  static __device__ Piece load(const void* row, std::int64_t at, std::int64_t size, bool whole) {
    return {whole ? load_vector<D>(row, at) : load_elements<D>(row, at, size)};
  }
  __device__ float value(int e) const { return value_of<D>(vector, e); }

  static __device__ void load_sum(const void* row, std::int64_t at, std::int64_t size, bool whole,
                                  float (&sum)[kSize]) {
    constexpr int kStep = kPerVector<DType::float32>;
#pragma unroll
    for (int first = 0; first < kSize; first += kStep) {
      const auto part = Piece<DType::float32>::load(row, at + first, size, whole);
#pragma unroll
      for (int e = 0; e < kStep; ++e) sum[first + e] = part.value(e);
    }
  }
  static __device__ void store_sum(void* row, std::int64_t at, std::int64_t size, bool whole,
                                   const float (&sum)[kSize]) {
    constexpr DType kSum = DType::float32;
#pragma unroll
    for (int first = 0; first < kSize; first += kPerVector<kSum>) {
      Vector part;
#pragma unroll
      for (int e = 0; e < kPerVector<kSum>; ++e) set_bits<kSum>(part, e, Element<kSum>::rounded(sum[first + e]));
      if (whole) {
        store_vector<kSum>(row, at + first, part);
      } else {
        store_elements<kSum>(row, at + first, size, part);
      }
    }
  }

  Vector vector;
};

/// Of float64 an element.
template <>
struct Piece<DType::float64> {
  using Sum = double;
  static constexpr int kSize = 1;

  static __device__ Piece load(const void* row, std::int64_t at, std::int64_t, bool) {
    return {static_cast<const double*>(row)[at]};
  }
  __device__ double value(int) const { return element; }

  static __device__ void load_sum(const void* row, std::int64_t at, std::int64_t, bool, double (&sum)[1]) {
    sum[0] = static_cast<const double*>(row)[at];
  }
  static __device__ void store_sum(void* row, std::int64_t at, std::int64_t, bool, const double (&sum)[1]) {
    static_cast<double*>(row)[at] = sum[0];
  }

  double element;
};

/// The rows that are read of up to kWindow, by objective and then in their order.
template <class T>
struct AccumulateShared {
  T coefficient[kWindow];
  int row[kWindow];
  int begin[kMaxObjectives];  ///< of an objective's rows in the list
  int end[kMaxObjectives];
  int size[kMaxObjectives];
  bool any[kMaxObjectives];        ///< whether it has a row at all
  signed char objective[kWindow];  ///< of each row of the window; -1: the row is not read
};

/// Multiplied and added in two roundings, as on the host.
template <DType D>
class Accumulation {
  using T = typename Piece<D>::Sum;
  static constexpr int kSize = Piece<D>::kSize;
  static constexpr int kTile = kThreads * kSize;

 public:
  __device__ explicit Accumulation(const AccumulatePass& pass)
      : pass_(pass.of),
        aligned_(pass.aligned),
        shared_(*dynamic_shared<AccumulateShared<T>>()),
        thread_(static_cast<int>(threadIdx.x)),
        k_(*pass.of.k < pass.of.count ? *pass.of.k : pass.of.count) {}

  /// Tiles of all sums in one row: of few long sums as of many short ones, each block has as many.
  __device__ void run() {
    if (thread_ < k_) shared_.any[thread_] = false;
    __syncthreads();
    for (int first = 0; first < pass_.rows.count; first += kWindow) list_rows(first);
    const std::int64_t tiles = (pass_.rows.size + kTile - 1) / kTile;
    std::int64_t tile = blockIdx.x;
    for (int k = 0; k < k_; ++k) {
      const double decay = pass_.decay[k];
      if (!shared_.any[k] && decay == 1.0) continue;
      for (; tile < tiles; tile += gridDim.x) add_up(k, decay, tile * kTile + thread_ * kSize);
      tile -= tiles;
    }
  }

 private:
  /// Puts the rows from `first` on into the list. Thread k takes those of objective k.
  __device__ void list_rows(int first) {
    const int left = pass_.rows.count - first;
    const int rows = left < kWindow ? left : kWindow;
    for (int i = thread_; i < rows; i += kThreads) {
      const int k = pass_.objective[first + i];
      const bool counts = static_cast<int>(pass_.coefficient[first + i] != 0.0) + pass_.reads_zeros > 0;
      const bool read = counts && k >= 0 && k < k_;
      shared_.objective[i] = static_cast<signed char>(read ? k : -1);
    }
    __syncthreads();  // and the last list has been read
    if (thread_ < k_) {
      int size = 0;
#pragma unroll 8
      for (int i = 0; i < rows; ++i) size += shared_.objective[i] == thread_ ? 1 : 0;
      shared_.size[thread_] = size;
      if (size > 0 && !shared_.any[thread_]) shared_.any[thread_] = true;
    }
    __syncthreads();
    if (thread_ < k_) {
      int place = 0;
      for (int k = 0; k < thread_; ++k) place += shared_.size[k];
      shared_.begin[thread_] = place;
      shared_.end[thread_] = place + shared_.size[thread_];
      for (int i = 0; place < shared_.end[thread_]; ++i) {
        if (shared_.objective[i] != thread_) continue;
        shared_.row[place] = first + i;
        shared_.coefficient[place] = static_cast<T>(pass_.coefficient[first + i]);
        ++place;
      }
    }
    __syncthreads();
  }

  /// The elements from `at` on of sum k.
  __device__ void add_up(int k, double decay, std::int64_t at) {
    const std::int64_t size = pass_.rows.size;
    const bool inside = at < size;
    const bool whole = aligned_ && at + kSize <= size;
    void* const to = pass_.sums[k];
    const bool carries = decay != 0.0;
    T sum[kSize];
#pragma unroll
    for (int e = 0; e < kSize; ++e) sum[e] = static_cast<T>(-0.0);  // changes nothing it is added to
    if (inside && carries) {
      Piece<D>::load_sum(to, at, size, whole, sum);
      if (decay != 1.0) {
#pragma unroll
        for (int e = 0; e < kSize; ++e) sum[e] = static_cast<T>(decay) * sum[e];
      }
    }
    for (int first = 0; first < pass_.rows.count; first += kWindow) {
      if (pass_.rows.count > kWindow) list_rows(first);
      if (!inside) continue;
      const int end = shared_.end[k];
      for (int listed = shared_.begin[k]; listed < end; listed += kInFlight) add(listed, end, at, whole, sum);
    }
    if (!inside) return;
    if (!carries && !shared_.any[k]) {
#pragma unroll
      for (int e = 0; e < kSize; ++e) sum[e] = T{0};
    }
    Piece<D>::store_sum(to, at, size, whole, sum);
  }

  __device__ void add(int listed, int end, std::int64_t at, bool whole, T (&sum)[kSize]) const {
    Piece<D> piece[kInFlight];
#pragma unroll
    for (int g = 0; g < kInFlight; ++g) {
      if (listed + g >= end) break;
      piece[g] = Piece<D>::load(pass_.rows.row(shared_.row[listed + g]), at, pass_.rows.size, whole);
    }
#pragma unroll
    for (int g = 0; g < kInFlight; ++g) {
      if (listed + g >= end) break;
      const T coefficient = shared_.coefficient[listed + g];
#pragma unroll
      for (int e = 0; e < kSize; ++e) sum[e] = sum[e] + coefficient * piece[g].value(e);
    }
  }

  const AccumulateArguments& pass_;
  bool aligned_;
  AccumulateShared<T>& shared_;
  int thread_;
  int k_;
};

template <DType D>
__global__ void __launch_bounds__(kThreads, kResident) accumulate_kernel(const __grid_constant__ AccumulatePass pass) {
  Accumulation<D>(pass).run();
}

template <DType D>
cudaError_t launch_kernel(const AccumulatePass& pass, cudaStream_t stream) {
  constexpr std::int64_t kTile = kThreads * Piece<D>::kSize;
  const std::int64_t tiles = (pass.of.rows.size + kTile - 1) / kTile * pass.of.count;
  LaunchShape shape{0, kThreads, sizeof(AccumulateShared<typename Piece<D>::Sum>)};
  const cudaError_t status = fill_device(accumulate_kernel<D>, tiles, &shape);
  if (status != cudaSuccess) return status;
  return launch(accumulate_kernel<D>, shape, stream, pass);
}

bool is_aligned(const void* memory, std::int64_t bytes) {
  return reinterpret_cast<std::uintptr_t>(memory) % static_cast<std::uintptr_t>(bytes) == 0;
}

bool valid(const AccumulateArguments& arguments) {
  if (!valid(arguments.rows) || arguments.count < 0 || arguments.count > kMaxObjectives || arguments.k == nullptr) {
    return false;
  }
  if (arguments.rows.count > 0 && (arguments.coefficient == nullptr || arguments.objective == nullptr)) return false;
  if (arguments.count > 0 && arguments.decay == nullptr) return false;
  if (arguments.rows.size == 0) return true;
  const std::int64_t element = element_bytes(accumulation_dtype(arguments.rows.dtype));
  return std::all_of(arguments.sums, arguments.sums + arguments.count,
                     [element](const void* sum) { return sum != nullptr && is_aligned(sum, element); });
}

}  // namespace

cudaError_t launch_accumulate(const AccumulateArguments& arguments, cudaStream_t stream) {
  if (!valid(arguments)) return cudaErrorInvalidValue;
  if (arguments.rows.size == 0 || arguments.count == 0) return cudaSuccess;
  const bool aligned_sums = std::all_of(arguments.sums, arguments.sums + arguments.count,
                                        [](const void* sum) { return is_aligned(sum, kVectorBytes); });
  const AccumulatePass pass{arguments, vector_aligned(arguments.rows) && aligned_sums};
  switch (arguments.rows.dtype) {
    case DType::float64:
      return launch_kernel<DType::float64>(pass, stream);
    case DType::float32:
      return launch_kernel<DType::float32>(pass, stream);
    case DType::bfloat16:
      return launch_kernel<DType::bfloat16>(pass, stream);
    default:
      return launch_kernel<DType::float16>(pass, stream);
  }
}

}  // namespace bucket_moo::cuda
