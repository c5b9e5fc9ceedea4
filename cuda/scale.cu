// A bucket times a coefficient.
#include <cuda_runtime.h>

#include <cstdint>

#include "elements.cuh"
#include "kept_weights.cuh"
#include "kernels/normal_float32.hpp"
#include "launch.cuh"
#include "scale.cuh"

namespace bucket_moo::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kResident = 4;  // blocks a multiprocessor holds at least
constexpr int kInFlight = 4;  // vectors read before the first of them is used

struct ScalePass {
  void* values;
  const void* from;  ///< may be `values`
  std::int64_t size;
  const double* coefficient;
  const double* share;
  void* factor;  ///< where a factor for the reduction goes; nullptr: the reduction does not multiply
  bool aligned;  ///< both can be accessed 16 bytes at a time
  KeptStep kept;
};

/// The coefficient; the first block sees to what goes with kept weights.
__device__ double coefficient_of(const ScalePass& pass) {
  if (pass.kept.kept.header == nullptr) return *pass.coefficient;
  if (blockIdx.x == 0) use_kept<kThreads>(pass.kept);
  return kept_coefficient(pass.kept);
}

/// Whether the rank is left out. After an error the coefficient is NaN and the share means nothing.
__device__ bool left_out(const ScalePass& pass, double coefficient) {
  return coefficient == coefficient && *pass.share == 0.0;
}

__device__ bool is_first_thread() { return blockIdx.x == 0 && threadIdx.x == 0; }

/// values = change(from), 16 bytes at a time; nothing is read unless `Read`.
template <DType D, bool Read, class Change>
__device__ void replace(const ScalePass& pass, Change change) {
  constexpr std::int64_t kTile = static_cast<std::int64_t>(kThreads) * kPerVector<D> * kInFlight;
  const std::int64_t size = pass.size;
  for (std::int64_t tile = blockIdx.x * kTile; tile < size; tile += gridDim.x * kTile) {
    const std::int64_t begin = tile + static_cast<int>(threadIdx.x) * kPerVector<D>;
    const auto place = [begin](int g) { return begin + g * kThreads * kPerVector<D>; };
    const auto whole = [&pass](std::int64_t at) { return pass.aligned && at + kPerVector<D> <= pass.size; };
    Vector vector[kInFlight];
    if constexpr (Read) {
#pragma unroll
      for (int g = 0; g < kInFlight; ++g) {
        const std::int64_t at = place(g);
        if (at >= size) break;
        vector[g] = whole(at) ? load_vector<D>(pass.from, at) : load_elements<D>(pass.from, at, size);
      }
    }
#pragma unroll
    for (int g = 0; g < kInFlight; ++g) {
      const std::int64_t at = place(g);
      if (at >= size) break;
      const Vector changed = change(vector[g]);
      if (whole(at)) {
        store_vector<D>(pass.values, at, changed);
      } else {
        store_elements<D>(pass.values, at, size, changed);
      }
    }
  }
}

/// Multiplied in T.
template <DType D, class T>
__device__ void multiply(const ScalePass& pass, double factor) {
  const T coefficient = static_cast<T>(factor);
  replace<D, true>(pass, [coefficient](const Vector& vector) {
    Vector product;
#pragma unroll
    for (int e = 0; e < kPerVector<D>; ++e) {
      const T value = coefficient * static_cast<T>(value_of<D>(vector, e));
      set_bits<D>(product, e, Element<D>::rounded(static_cast<float>(value)));
    }
    return product;
  });
}

template <DType D>
__global__ void __launch_bounds__(kThreads, kResident) scale_kernel(const __grid_constant__ ScalePass pass) {
  const double coefficient = coefficient_of(pass);
  const bool out = left_out(pass, coefficient);
  const bool normal = normal_float32(coefficient);
  if (pass.factor != nullptr) {
    const bool as_factor = D == DType::float32 && normal && !out;
    if (is_first_thread()) {
      const float factor = as_factor ? static_cast<float>(coefficient) : 1.0f;
      *static_cast<Bits<D>*>(pass.factor) = Element<D>::rounded(factor);
    }
    if (as_factor) return;
  }
  if (out) {
    replace<D, false>(pass, [](const Vector&) { return Vector{}; });
  } else if (normal) {
    multiply<D, float>(pass, coefficient);
  } else {
    multiply<D, double>(pass, coefficient);
  }
}

/// A thread an element.
__global__ void __launch_bounds__(kThreads) scale_float64(const __grid_constant__ ScalePass pass) {
  const double coefficient = coefficient_of(pass);
  const bool out = left_out(pass, coefficient);
  if (pass.factor != nullptr) {
    if (is_first_thread()) *static_cast<double*>(pass.factor) = out ? 1.0 : coefficient;
    if (!out) return;
  }
  const double* const from = static_cast<const double*>(pass.from);
  double* const values = static_cast<double*>(pass.values);
  for (std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < pass.size;
       at += static_cast<std::int64_t>(gridDim.x) * kThreads) {
    values[at] = out ? 0.0 : coefficient * from[at];
  }
}

using Kernel = void (*)(ScalePass);

Kernel kernel_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return scale_float64;
    case DType::float32:
      return scale_kernel<DType::float32>;
    case DType::bfloat16:
      return scale_kernel<DType::bfloat16>;
    default:
      return scale_kernel<DType::float16>;
  }
}

bool valid(const ScaleArguments& arguments) {
  return element_bytes(arguments.dtype) != 0 && arguments.size >= 0 &&
         (arguments.values != nullptr || arguments.size == 0) && arguments.share != nullptr &&
         (arguments.coefficient != nullptr || arguments.kept.kept.header != nullptr);
}

cudaError_t launch_scale_kernel(const ScaleArguments& arguments, void* factor, cudaStream_t stream) {
  const void* const from = arguments.from == nullptr ? arguments.values : arguments.from;
  const auto aligned = [](const void* at) { return reinterpret_cast<std::uintptr_t>(at) % kVectorBytes == 0; };
  const ScalePass pass{arguments.values,
                       from,
                       arguments.size,
                       arguments.coefficient,
                       arguments.share,
                       factor,
                       aligned(arguments.values) && aligned(from),
                       arguments.kept};
  const Kernel kernel = kernel_of(arguments.dtype);
  const std::int64_t tile = arguments.dtype == DType::float64
                                ? kThreads
                                : kThreads * kInFlight * kVectorBytes / element_bytes(arguments.dtype);
  const std::int64_t tiles = (arguments.size + tile - 1) / tile;
  LaunchShape shape{0, kThreads};
  const cudaError_t status = fill_device(kernel, tiles > 0 ? tiles : 1, &shape);
  if (status != cudaSuccess) return status;
  return launch(kernel, shape, stream, pass);
}

}  // namespace

cudaError_t launch_scale(const ScaleArguments& arguments, cudaStream_t stream) {
  if (!valid(arguments)) return cudaErrorInvalidValue;
  if (arguments.size == 0 && arguments.kept.kept.header == nullptr) return cudaSuccess;
  return launch_scale_kernel(arguments, nullptr, stream);
}

cudaError_t launch_prepare_premultiplied(const ScaleArguments& arguments, void* factor, cudaStream_t stream) {
  if (!valid(arguments) || arguments.from != nullptr || factor == nullptr) return cudaErrorInvalidValue;
  return launch_scale_kernel(arguments, factor, stream);
}

}  // namespace bucket_moo::cuda
