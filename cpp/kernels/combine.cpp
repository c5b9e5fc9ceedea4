#include "kernels/combine.hpp"

#include <cassert>

#include "kernels/isa/variant.hpp"

namespace bucket_moo {

void combine(const Rows& rows, const double* coefficient, void* out, ZeroRows zero_rows) {
  assert(rows.count >= 0 && rows.size >= 0);
  isa::active_variant().combine(rows, coefficient, zero_rows, out);
}

}  // namespace bucket_moo
