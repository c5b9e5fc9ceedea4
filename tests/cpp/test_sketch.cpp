// The sketch on the CPU against loops over its definition, for every instruction set this machine has.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "checks.hpp"
#include "kernel_rows.hpp"
#include "kernels/sketch.hpp"

namespace {

using namespace kernel_rows;
using checks::context;

/// The sketch of row r as float64, whatever it is stored in.
Matrix sketch(const Variant& v, Tile& t, int r, const bucket_moo::SketchMap& map) {
  const DType type = bucket_moo::sketch_dtype(t.dtype);
  const std::size_t element = bucket_moo::element_size(type);
  const std::size_t end = static_cast<std::size_t>(map.width()) * element;
  std::vector<char> out(end + 3, char{0x5a});
  v.sketch(t.data[static_cast<std::size_t>(r)], t.n, t.dtype, map, out.data());
  CHECK(out[end] == 0x5a && out[end + 1] == 0x5a && out[end + 2] == 0x5a);
  Matrix columns;
  for (std::size_t c = 0; c < end; c += element) columns.push_back(get(type, &out[c]));
  return columns;
}

/// By the definition, element by element; and the sum of sizes in each column.
void reference_sketch(Tile& t, int r, const bucket_moo::SketchMap& map, std::vector<long double>& sum,
                      std::vector<long double>& size) {
  sum.assign(static_cast<std::size_t>(map.width()), 0.0L);
  size.assign(static_cast<std::size_t>(map.width()), 0.0L);
  for (std::int64_t i = 0; i < t.n; ++i) {
    const std::size_t column = static_cast<std::size_t>((i % map.width()) ^ map.flip(i / map.width()));
    const long double x = t.value(r, i);
    sum[column] += (map.signs(i / 64) >> (i % 64) & 1) != 0 ? -x : x;
    size[column] += std::fabs(x);
  }
}

/// Each element goes through at most 64 additions and one for every 64 runs, each of which rounds once.
void check_sketch(Tile& t, const bucket_moo::SketchMap& map) {
  const double unit = t.dtype == DType::float64 ? 0x1p-53 : 0x1p-24;
  const std::int64_t runs = (t.n + map.width() - 1) / map.width();
  const double roundings = static_cast<double>((runs < 64 ? runs : 64) + (runs + 63) / 64);
  std::vector<long double> sum;
  std::vector<long double> size;
  for (int r = 0; r < t.count(); ++r) {
    reference_sketch(t, r, map, sum, size);
    Matrix first;
    for (const Variant* v : usable()) {
      const std::string before = context;
      context += std::string(" ") + v->name;
      const Matrix got = sketch(*v, t, r, map);
      bool close = true;
      for (std::size_t c = 0; c < got.size(); ++c) {
        close = close && std::fabs(got[c] - sum[c]) <= roundings * unit * size[c];
      }
      CHECK(close);
      if (first.empty()) first = got;
      CHECK(same_bits(first, got));
      context = before;
    }
  }
}

void sketch_of_all_sizes() {
  for (const DType d : kDTypes) {
    for (const std::int64_t width : {64, 128, 1024, 2048, 8192}) {
      for (const std::int64_t around : {std::int64_t{0}, std::int64_t{64}, std::int64_t{1024}, width, 3 * width}) {
        for (const std::int64_t n : {around - 1, around, around + 1, around + 37}) {
          if (n < 0) continue;
          Tile t(d, 2, n, true);
          t.fill_random();
          context = std::string("sketch ") + name_of(d) + " n=" + std::to_string(n) + " p=" + std::to_string(width);
          check_sketch(t, {{random_bits(), random_bits(), random_bits()}, width});
        }
      }
    }
    for (const std::int64_t n : {64 * 64 - 1, 64 * 64, 64 * 64 + 1, 64 * 129 + 5, 100003}) {  // chunks of 64 runs
      Tile t(d, 1, n, true);
      t.fill_random();
      context = std::string("sketch in chunks ") + name_of(d) + " n=" + std::to_string(n);
      for (const std::int64_t width : {64, 1024}) check_sketch(t, {{random_bits(), 0, 0}, width});
    }
  }
}

void sketch_of_zeros_and_non_finite_values() {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const DType d : kDTypes) {
    for (const std::int64_t width : {64, 2048}) {
      const std::int64_t n = 5001;
      const bucket_moo::SketchMap map({random_bits(), 0, 0}, width);
      for (const double value : {std::nan(""), infinity, -infinity, 1.0, -0.0}) {
        for (const std::int64_t at : {std::int64_t{0}, std::int64_t{2047}, n - 1}) {
          Tile t(d, 1, n, true);
          for (std::int64_t i = 0; i < n; ++i) t.set(0, i, 0.0);
          t.set(0, at, value);
          context = std::string("sketch of one value ") + name_of(d) + " at " + std::to_string(at);
          const bool negative = (map.signs(at / 64) >> (at % 64) & 1) != 0;
          const double expected = negative ? -value : value;
          for (const Variant* v : usable()) {
            const Matrix got = sketch(*v, t, 0, map);
            bool right = true;
            for (std::int64_t c = 0; c < width; ++c) {
              const double column = got[static_cast<std::size_t>(c)];
              const bool here = c == ((at % width) ^ map.flip(at / width));
              right = right && (!here ? column == 0 : std::isnan(value) ? std::isnan(column) : column == expected);
            }
            CHECK(right);
          }
        }
      }
    }
  }
}

void public_function_dispatches() {
  context = "dispatch";
  Tile t(DType::float32, 3, 777);
  t.fill_random();
  const bucket_moo::SketchMap map({1, 2, 3}, 64);
  std::vector<float> columns(64);
  bucket_moo::sketch(t.data[0], t.n, t.dtype, map, columns.data());
  CHECK(same_bits(Matrix(columns.begin(), columns.end()), sketch(bucket_moo::isa::active_variant(), t, 0, map)));
}

}  // namespace

int main() {
  sketch_of_all_sizes();
  sketch_of_zeros_and_non_finite_values();
  public_function_dispatches();
  return kernel_rows::finish();
}
