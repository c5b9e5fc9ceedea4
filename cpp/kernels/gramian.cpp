#include "kernels/gramian.hpp"

#include <cassert>

#include "kernels/isa/variant.hpp"

namespace bucket_moo {

namespace {

void run(const isa::Variant& variant, const Rows& rows, const ObjectiveMap& map, double* out) {
  assert(rows.count >= 0 && rows.size >= 0);
  assert(map.k >= 0 && map.k <= kMaxObjectives);
  variant.gramian(rows, map, out);
}

}  // namespace

void gramian(const Rows& rows, const ObjectiveMap& map, double* out) { run(isa::active_variant(), rows, map, out); }

void portable_gramian(const Rows& rows, const ObjectiveMap& map, double* out) {
  int count = 0;
  run(isa::variants(&count)[0], rows, map, out);
}

}  // namespace bucket_moo
