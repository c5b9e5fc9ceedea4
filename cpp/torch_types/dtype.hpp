// Element types of a bucket: torch's names for the kernels' types.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include "kernels/dtype_names.hpp"
#include "kernels/rows.hpp"

namespace bucket_moo {

/// Raises TypeError, naming `what`, for every dtype the kernels do not take.
inline DType dtype_of(c10::ScalarType type, const char* what) {
  switch (type) {
    case c10::ScalarType::Float:
      return DType::float32;
    case c10::ScalarType::BFloat16:
      return DType::bfloat16;
    case c10::ScalarType::Half:
      return DType::float16;
    case c10::ScalarType::Double:
      return DType::float64;
    default:
      C10_THROW_ERROR(TypeError, c10::str("bucket_moo_ext: ", what, " must have one of the dtypes ", kSupportedDtypes,
                                          "; got ", c10::toString(type)));
  }
}

inline c10::ScalarType scalar_type_of(DType dtype) {
  switch (dtype) {
    case DType::bfloat16:
      return c10::ScalarType::BFloat16;
    case DType::float16:
      return c10::ScalarType::Half;
    case DType::float64:
      return c10::ScalarType::Double;
    default:
      return c10::ScalarType::Float;
  }
}

}  // namespace bucket_moo
