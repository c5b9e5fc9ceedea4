#include "kernels/accumulate.hpp"

#include <cassert>

#include "kernels/isa/variant.hpp"
#include "kernels/normal_float32.hpp"

namespace bucket_moo {

void accumulate(const Rows& rows, const double* coefficient, double decay, void* sum, ZeroRows zero_rows) {
  assert(rows.count >= 0 && rows.size >= 0 && normal_float32(decay));
  for (int r = 0; r < rows.count; ++r) assert(normal_float32(coefficient[r]));
  isa::active_variant().accumulate(rows, coefficient, decay, zero_rows, sum);
}

}  // namespace bucket_moo
