// A triangle of a symmetric matrix, row by row: how Gramians travel.
#ifndef BUCKET_MOO_PACKED_TRIANGLE_HPP
#define BUCKET_MOO_PACKED_TRIANGLE_HPP

#include <bucket_moo/config.hpp>

namespace bucket_moo {

/// Entries of a [k, k] matrix on its diagonal and on one side of it.
BUCKET_MOO_HD constexpr int packed_size(int k) { return k * (k + 1) / 2; }

/// Where entry (i, j), j <= i, of the lower triangle is.
BUCKET_MOO_HD constexpr int packed_index(int i, int j) { return packed_size(i) + j; }

/// The i of packed_index().
BUCKET_MOO_HD constexpr int packed_row(int entry) {
  int i = 0;
  while (packed_size(i + 1) <= entry) ++i;
  return i;
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_PACKED_TRIANGLE_HPP
