// Numbers in device memory that are float64 to the kernels, whatever holds them.
#ifndef BUCKET_MOO_CUDA_NUMBERS_CUH
#define BUCKET_MOO_CUDA_NUMBERS_CUH

#include <bucket_moo/config.hpp>
#include <cstdint>

namespace bucket_moo::cuda {

/// float64 or float32; what is written to float32 is rounded.
struct Numbers {
  void* data = nullptr;
  bool single = false;  ///< float32

  BUCKET_MOO_HD double get(std::int64_t i) const {
    return single ? static_cast<double>(static_cast<const float*>(data)[i]) : static_cast<const double*>(data)[i];
  }

  BUCKET_MOO_HD void set(std::int64_t i, double value) const {
    if (single) {
      static_cast<float*>(data)[i] = static_cast<float>(value);
    } else {
      static_cast<double*>(data)[i] = value;
    }
  }
};

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_NUMBERS_CUH
