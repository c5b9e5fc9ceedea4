#include "kernels/combine.hpp"

#include <cassert>

#include "kernels/isa/variant.hpp"

namespace bucket_moo {

void combine(const Rows& rows, const double* coefficient, void* out, ZeroRows zero_rows) {
  combine(rows, coefficient, out, rows.dtype, zero_rows);
}

void combine(const Rows& rows, const double* coefficient, void* out, DType out_dtype, ZeroRows zero_rows) {
  assert(rows.count >= 0 && rows.size >= 0);
  assert(combines_to(rows.dtype, out_dtype));
  isa::active_variant().combine(rows, coefficient, zero_rows, out, out_dtype);
}

}  // namespace bucket_moo
