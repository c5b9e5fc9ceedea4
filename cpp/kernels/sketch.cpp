#include "kernels/sketch.hpp"

#include <cassert>

#include "kernels/isa/variant.hpp"

namespace bucket_moo {

void sketch(const void* row, std::int64_t n, DType dtype, const SketchMap& map, void* out) {
  assert(n >= 0);
  isa::active_variant().sketch(row, n, dtype, map, out);
}

}  // namespace bucket_moo
