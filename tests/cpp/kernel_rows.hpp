// What the tests of the CPU kernels share: rows in memory, and the instruction sets that this machine has.
#ifndef BUCKET_MOO_TESTS_KERNEL_ROWS_HPP
#define BUCKET_MOO_TESTS_KERNEL_ROWS_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "checks.hpp"
#include "elements.hpp"
#include "kernels/isa/variant.hpp"
#include "kernels/rows.hpp"

namespace kernel_rows {

using namespace elements;
using bucket_moo::isa::Variant;
using Matrix = std::vector<double>;

inline constexpr std::int64_t kSizes[] = {0, 1, 2, 15, 16, 17, 127, 255, 511, 512, 513, 1023, 1024, 1025, 4099};

/// Rows in memory of their own size, so that a read beyond an end is one the address sanitizer sees; each starts
/// `misalign(row)` elements into its allocation.
struct Tile {
  Tile(DType d, int count, std::int64_t size, bool misaligned = false) : dtype(d), n(size) {
    const std::size_t element = bucket_moo::element_size(d);
    for (int r = 0; r < count; ++r) {
      const std::size_t skip = misaligned ? static_cast<std::size_t>(r % 5 + 1) * element : 0;
      memory.emplace_back(skip + static_cast<std::size_t>(size) * element);
      data.push_back(memory.back().data() + skip);
      objective.push_back(r);
      share.push_back(1.0);
    }
  }
  void* at(int r, std::int64_t i) {
    const std::size_t offset = static_cast<std::size_t>(i) * bucket_moo::element_size(dtype);
    return const_cast<char*>(static_cast<const char*>(data[static_cast<std::size_t>(r)])) + offset;
  }
  double value(int r, std::int64_t i) { return get(dtype, at(r, i)); }
  void set(int r, std::int64_t i, double v) { put(dtype, at(r, i), v); }
  void fill_random(double scale = 1.0) {
    for (int r = 0; r < count(); ++r) fill_row(r, scale);
  }
  void fill_row(int r, double scale) {
    // A common part, so that off-diagonal entries are not all noise.
    for (std::int64_t i = 0; i < n; ++i) set(r, i, scale * (random_unit() + 0.3));
  }
  int count() const { return static_cast<int>(data.size()); }
  int k() const {
    int most = 0;
    for (const int o : objective) most = o + 1 > most ? o + 1 : most;
    return most;
  }
  bucket_moo::Rows rows() const { return {data.data(), count(), n, dtype}; }
  bucket_moo::ObjectiveMap map() const { return {objective.data(), share.data(), k()}; }

  DType dtype;
  std::int64_t n;
  std::vector<std::vector<char>> memory;
  std::vector<const void*> data;
  std::vector<int> objective;
  std::vector<double> share;
};

inline bool same_bits(const Matrix& a, const Matrix& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (std::memcmp(&a[i], &b[i], sizeof(double)) != 0) return false;
  }
  return true;
}

inline std::vector<const Variant*> usable() {
  int count = 0;
  const Variant* all = bucket_moo::isa::variants(&count);
  std::vector<const Variant*> result;
  for (int i = 0; i < count; ++i) {
    if (all[i].supported()) result.push_back(&all[i]);
  }
  return result;
}

/// What main() returns.
inline int finish() {
  std::printf("variants:");
  for (const Variant* v : usable()) std::printf(" %s", v->name);
  std::printf("\n");
  return checks::finish();
}

}  // namespace kernel_rows

#endif  // BUCKET_MOO_TESTS_KERNEL_ROWS_HPP
