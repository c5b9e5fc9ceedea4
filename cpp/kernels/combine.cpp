#include "kernels/combine.hpp"

#include <cassert>

#include "kernels/isa/variant.hpp"

namespace bucket_moo {

void combine(const Rows& rows, const double* coefficient, void* out) {
  assert(rows.count >= 0 && rows.size >= 0);
  isa::active_variant().combine(rows, coefficient, out);
}

}  // namespace bucket_moo
