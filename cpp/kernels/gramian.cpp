#include "kernels/gramian.hpp"

#include <cassert>

#include "kernels/isa/variant.hpp"

namespace bucket_moo {

void gramian(const Rows& rows, const ObjectiveMap& map, double* out) {
  assert(rows.count >= 0 && rows.size >= 0);
  assert(map.k >= 0 && map.k <= kMaxObjectives);
  isa::active_variant().gramian(rows, map, out);
}

}  // namespace bucket_moo
