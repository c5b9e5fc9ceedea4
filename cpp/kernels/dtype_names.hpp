// Element types by name, for messages.
#pragma once

#include "kernels/rows.hpp"

namespace bucket_moo {

inline constexpr const char* kSupportedDtypes = "float32, bfloat16, float16, float64";

inline const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::bfloat16:
      return "bfloat16";
    case DType::float16:
      return "float16";
    case DType::float64:
      return "float64";
  }
  return "unknown";
}

}  // namespace bucket_moo
