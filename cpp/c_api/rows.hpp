// Gradients as C programs give them.
#pragma once

#include <cstdint>

#include "bucket_moo/limits.hpp"
#include "c_api/boundary.hpp"
#include "kernels/dtype_names.hpp"
#include "kernels/rows.hpp"

namespace bucket_moo::c_api {

static_assert(static_cast<int>(DType::float32) == BUCKET_MOO_FLOAT32);
static_assert(static_cast<int>(DType::bfloat16) == BUCKET_MOO_BFLOAT16);
static_assert(static_cast<int>(DType::float16) == BUCKET_MOO_FLOAT16);
static_assert(static_cast<int>(DType::float64) == BUCKET_MOO_FLOAT64);

inline DType dtype_of(int dtype) {
  require(dtype >= BUCKET_MOO_FLOAT32 && dtype <= BUCKET_MOO_FLOAT64, "dtype must be an enum bucket_moo_dtype (",
          kSupportedDtypes, "); got ", dtype);
  return static_cast<DType>(dtype);
}

inline void check_k(int k) {
  require(k >= 1 && k <= kMaxObjectives, "k must be from 1 to ", kMaxObjectives, "; got ", k);
}

inline void check_elements(std::int64_t n, const char* name) { require(n >= 0, name, " must be >= 0; got ", n); }

}  // namespace bucket_moo::c_api
