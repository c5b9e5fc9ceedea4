// The CPU kernels against plain long double loops, for every instruction set this machine has.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "kernels/combine.hpp"
#include "kernels/gramian.hpp"
#include "kernels/isa/variant.hpp"
#include "kernels/sketch.hpp"

namespace {

using bucket_moo::DType;
using bucket_moo::isa::Variant;

int failures = 0;
long checks = 0;
std::string context;

void check(bool ok, const char* what, int line) {
  ++checks;
  if (ok) return;
  if (++failures <= 40) std::printf("FAILED line %d: %s [%s]\n", line, what, context.c_str());
}
#define CHECK(condition) check((condition), #condition, __LINE__)

constexpr DType kDTypes[] = {DType::float32, DType::bfloat16, DType::float16, DType::float64};
const char* const kNames[] = {"float32", "bfloat16", "float16", "float64"};
const char* name_of(DType d) { return kNames[static_cast<int>(d)]; }

// ---- conversions written with integers only, independent of the kernels'
// ---------------------------------------------

/// Value of a bit pattern with `e` exponent and `m` mantissa bits.
double decode(std::uint32_t bits, int e, int m) {
  const std::uint32_t exponent = bits >> m & ((1U << e) - 1);
  const std::uint32_t mantissa = bits & ((1U << m) - 1);
  const double sign = bits >> (e + m) & 1 ? -1.0 : 1.0;
  const int bias = (1 << (e - 1)) - 1;
  if (exponent == (1U << e) - 1) return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(static_cast<double>(mantissa), 1 - bias - m);
  return sign * std::ldexp(static_cast<double>(mantissa + (1U << m)), static_cast<int>(exponent) - bias - m);
}

/// Nearest, ties to even, bit pattern; the only rounding there is.
std::uint32_t encode(double value, int e, int m) {
  const std::uint32_t sign = std::signbit(value) ? 1U << (e + m) : 0U;
  const int bias = (1 << (e - 1)) - 1;
  if (std::isnan(value)) return sign | ((1U << e) - 1) << m | 1U << (m - 1);
  const std::uint32_t infinity = ((1U << e) - 1) << m;
  const double magnitude = std::fabs(value);
  if (std::isinf(value)) return sign | infinity;
  if (magnitude == 0) return sign;
  int exponent = std::ilogb(magnitude);
  if (exponent < 1 - bias) exponent = 1 - bias;
  const double units = std::nearbyint(std::ldexp(magnitude, m - exponent));  // exact before it rounds
  // As an integer count of units the pattern carries by itself from mantissa into exponent, and into Inf.
  const double pattern = static_cast<double>(exponent + bias - 1) * std::ldexp(1.0, m) + units;
  return sign | (pattern >= infinity ? infinity : static_cast<std::uint32_t>(pattern));
}

void put(DType d, void* to, double value) {
  const float f = static_cast<float>(value);
  const std::uint16_t b = static_cast<std::uint16_t>(encode(value, 8, 7));
  const std::uint16_t h = static_cast<std::uint16_t>(encode(value, 5, 10));
  switch (d) {
    case DType::float32:
      std::memcpy(to, &f, 4);
      break;
    case DType::bfloat16:
      std::memcpy(to, &b, 2);
      break;
    case DType::float16:
      std::memcpy(to, &h, 2);
      break;
    case DType::float64:
      std::memcpy(to, &value, 8);
      break;
  }
}

double get(DType d, const void* from) {
  float f;
  double v;
  std::uint16_t h;
  switch (d) {
    case DType::float32:
      std::memcpy(&f, from, 4);
      return static_cast<double>(f);
    case DType::bfloat16:
      std::memcpy(&h, from, 2);
      return decode(h, 8, 7);
    case DType::float16:
      std::memcpy(&h, from, 2);
      return decode(h, 5, 10);
    default:
      std::memcpy(&v, from, 8);
      return v;
  }
}

// ---- inputs --------------------------------------------------------------------------------------------------------

std::uint64_t random_state = 1;
std::uint64_t random_bits() {  // splitmix64
  std::uint64_t z = random_state += 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}
double random_unit() { return static_cast<double>(random_bits() >> 11) * 0x1p-53 * 2 - 1; }

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

using Matrix = std::vector<double>;

Matrix gramian(const Variant& v, const Tile& t) {
  const int k = t.k();
  Matrix g(static_cast<std::size_t>(k * k), -7.0);
  v.gramian(t.rows(), t.map(), g.data());
  return g;
}

Matrix reference_gramian(Tile& t) {
  const std::size_t k = static_cast<std::size_t>(t.k());
  std::vector<long double> sum(k * k, 0.0L);
  std::vector<long double> g(k);
  for (std::int64_t i = 0; i < t.n; ++i) {
    std::fill(g.begin(), g.end(), 0.0L);
    for (int r = 0; r < t.count(); ++r) {
      const std::size_t row = static_cast<std::size_t>(r);
      if (t.share[row] == 0) continue;
      g[static_cast<std::size_t>(t.objective[row])] += static_cast<long double>(t.share[row]) * t.value(r, i);
    }
    for (std::size_t a = 0; a < k; ++a) {
      for (std::size_t b = 0; b < k; ++b) sum[a * k + b] += g[a] * g[b];
    }
  }
  return Matrix(sum.begin(), sum.end());
}

/// Largest |g - reference| / (|g_i| |g_j|); also wants exact symmetry.
double worst_error(const Matrix& g, const Matrix& reference) {
  const std::size_t k = static_cast<std::size_t>(std::lround(std::sqrt(static_cast<double>(g.size()))));
  double worst = 0;
  for (std::size_t i = 0; i < k; ++i) {
    for (std::size_t j = 0; j < k; ++j) {
      CHECK(std::memcmp(&g[i * k + j], &g[j * k + i], sizeof(double)) == 0);
      const double scale = std::sqrt(reference[i * k + i]) * std::sqrt(reference[j * k + j]);
      const double error = std::fabs(g[i * k + j] - reference[i * k + j]);
      if (error == 0) continue;
      worst = std::fmax(worst, error / scale);
      if (!(error / scale < 1)) worst = 1;  // NaN, or a scale of zero
    }
  }
  return worst;
}

double tolerance(DType d) { return d == DType::float64 ? 1e-14 : 1e-6; }

bool same_bits(const Matrix& a, const Matrix& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (std::memcmp(&a[i], &b[i], sizeof(double)) != 0) return false;
  }
  return true;
}

std::vector<const Variant*> usable() {
  int count = 0;
  const Variant* all = bucket_moo::isa::variants(&count);
  std::vector<const Variant*> result;
  for (int i = 0; i < count; ++i) {
    if (all[i].supported()) result.push_back(&all[i]);
  }
  return result;
}

/// Checks the Gramian of a tile: error, and the same bits from every variant of its kind.
void check_gramian(Tile& t) {
  const Matrix reference = reference_gramian(t);
  const Matrix* fused = nullptr;
  std::vector<Matrix> kept;
  kept.reserve(8);
  for (const Variant* v : usable()) {
    const std::string before = context;
    context += std::string(" ") + v->name;
    kept.push_back(gramian(*v, t));
    CHECK(worst_error(kept.back(), reference) <= tolerance(t.dtype));
    if (v->fused_multiply_add) {
      if (fused != nullptr) CHECK(same_bits(*fused, kept.back()));
      fused = &kept.back();
    }
    context = before;
  }
}

// ---- Gramian -------------------------------------------------------------------------------------------------------

constexpr std::int64_t kSizes[] = {0, 1, 2, 15, 16, 17, 127, 255, 511, 512, 513, 1023, 1024, 1025, 4099};

void gramian_of_all_sizes() {
  for (const DType d : kDTypes) {
    for (const std::int64_t n : kSizes) {
      for (const int k : {1, 2, 3, 5, 8}) {
        for (const bool misaligned : {false, true}) {
          Tile t(d, k, n, misaligned);
          t.fill_random();
          context = std::string(name_of(d)) + " n=" + std::to_string(n) + " K=" + std::to_string(k);
          check_gramian(t);
        }
      }
    }
    Tile t(d, 4, 100003, true);
    t.fill_random();
    context = std::string(name_of(d)) + " n=100003";
    check_gramian(t);
  }
}

void gramian_of_every_k() {
  for (const DType d : {DType::float32, DType::bfloat16, DType::float64}) {
    for (int k = 1; k <= 64; ++k) {
      Tile t(d, k, 600 + k);
      t.fill_random();
      context = std::string(name_of(d)) + " K=" + std::to_string(k);
      check_gramian(t);
    }
  }
}

void gramian_of_shared_objectives() {
  for (const DType d : kDTypes) {
    for (const std::int64_t n : {std::int64_t{5}, std::int64_t{1100}}) {
      Tile t(d, 11, n, true);
      t.fill_random();
      t.objective = {2, 0, 0, 5, 2, 4, 0, 5, 5, 2, 4};  // objectives 1 and 3 have no row
      t.share = {0.25, 0.1, 0.6, 0.7, 0.5, 1.0, 0.3, 0.2, 0.1, 0.25, 0.0};
      for (std::int64_t i = 0; i < n; ++i) t.set(10, i, std::nan(""));
      context = std::string("shared ") + name_of(d) + " n=" + std::to_string(n);
      check_gramian(t);
      for (const Variant* v : usable()) {
        const Matrix g = gramian(*v, t);
        for (std::size_t i = 0; i < 6; ++i) {
          CHECK(g[1 * 6 + i] == 0 && g[i * 6 + 3] == 0);
        }
      }
    }
  }
  // Thousands of rows, and one row that is not alone but counts in full.
  Tile many(DType::float32, 3000, 40);
  many.fill_random();
  for (std::size_t r = 0; r < 3000; ++r) {
    many.objective[r] = static_cast<int>(r % 7);
    many.share[r] = r < 7 ? 1.0 : 1e-3;
  }
  context = "3000 rows";
  check_gramian(many);
}

void rows_left_out_change_no_bit() {
  for (const DType d : kDTypes) {
    context = std::string("left out ") + name_of(d);
    Tile t(d, 6, 1300);
    t.fill_random();
    Tile moved(d, 9, 1300, true);  // the same rows in other slots, at other addresses, others left out
    moved.fill_random(std::numeric_limits<double>::infinity());
    moved.objective = {5, 0, 4, 3, 1, 2, 1, 0, 8};
    moved.share = {1, 0, 1, 1, 0, 1, 1, 1, 0};
    for (int r = 0; r < 9; ++r) {
      if (moved.share[static_cast<std::size_t>(r)] == 0 || t.n == 0) continue;
      std::memcpy(moved.at(r, 0), t.at(moved.objective[static_cast<std::size_t>(r)], 0),
                  static_cast<std::size_t>(t.n) * bucket_moo::element_size(d));
    }
    for (const Variant* v : usable()) {
      const Matrix g = gramian(*v, t);
      const Matrix h = gramian(*v, moved);
      bool same = true;
      for (std::size_t i = 0; i < 6; ++i) {
        for (std::size_t j = 0; j < 6; ++j) same = same && g[i * 6 + j] == h[i * 9 + j];
      }
      CHECK(same);
      for (std::size_t i = 0; i < 9; ++i) CHECK(h[8 * 9 + i] == 0);
    }
  }
}

void non_finite_shows_on_the_diagonal() {
  const double bad[] = {std::nan(""), std::numeric_limits<double>::infinity(),
                        -std::numeric_limits<double>::infinity()};
  for (const DType d : kDTypes) {
    for (const double value : bad) {
      for (const std::int64_t at : {std::int64_t{0}, std::int64_t{700}, std::int64_t{1201}}) {
        for (const double share : {1.0, 0.5}) {
          Tile t(d, 5, 1202);
          t.fill_random();
          t.set(3, at, value);
          t.share[3] = share;
          context = std::string("non-finite ") + name_of(d) + " at " + std::to_string(at);
          Matrix clean;
          for (const Variant* v : usable()) {
            const Matrix g = gramian(*v, t);
            for (std::size_t i = 0; i < 5; ++i) CHECK(std::isfinite(g[i * 5 + i]) == (i != 3));
            CHECK(std::isfinite(g[0 * 5 + 1]) && std::isfinite(g[2 * 5 + 4]));
          }
        }
      }
    }
  }
}

void huge_and_tiny_values() {
  const float denormal = std::numeric_limits<float>::denorm_min();
  for (const DType d : {DType::float32, DType::bfloat16}) {
    for (const double scale : {1e25, 1e-25, 3e18, 1e19, 5e-16, 1e-17, 1e-19, 1e-22, 1e-37}) {
      for (const bool shared : {false, true}) {
        Tile t(d, 6, 1500, true);
        t.fill_random(scale);
        t.fill_row(1, 1.0);                                        // beside an ordinary one,
        t.fill_row(2, 0.0);                                        // a zero one,
        for (std::int64_t i = 40; i < t.n; ++i) t.set(4, i, 0.0);  // and one that is mostly zero
        if (shared) {
          t.objective = {0, 1, 2, 3, 4, 0};
          t.share = {0.3, 1, 1, 0.5, 0.5, 0.7};
        }
        context = std::string("scale ") + std::to_string(std::log10(scale)) + " " + name_of(d);
        check_gramian(t);
        for (const Variant* v : usable()) {
          const Matrix g = gramian(*v, t);
          const std::size_t k = static_cast<std::size_t>(t.k());
          for (std::size_t i = 0; i < k; ++i) {
            CHECK(std::isfinite(g[i * k + i]) && (g[i * k + i] > 0) == (i != 2));
            CHECK(g[2 * k + i] == 0);
          }
        }
      }
    }
    Tile t(d, 3, 1100);
    t.set(0, 1027, static_cast<double>(d == DType::float32 ? denormal : static_cast<float>(0x1p-133)));
    for (std::int64_t i = 0; i < t.n; ++i) t.set(1, i, -0.0);
    t.set(2, 3, d == DType::float32 ? static_cast<double>(std::numeric_limits<float>::max()) : 0x1.fep127);
    context = std::string("extremes ") + name_of(d);
    check_gramian(t);
    for (const Variant* v : usable()) CHECK(gramian(*v, t)[0] > 0);
  }
  // float16: the whole range, subnormals included, has float32 products that are exact enough.
  for (const double scale : {6e-8, 1e-6, 5e4}) {
    Tile t(DType::float16, 3, 1100);
    t.fill_random(scale);
    t.set(0, 0, 6e-8);
    context = "float16 range";
    check_gramian(t);
  }
}

#if defined(__SSE2__)
/// A caller that flushes subnormals must not make a tiny gradient a zero one.
void flush_to_zero_does_not_matter() {
  Tile t(DType::float32, 3, 1100);
  t.fill_row(0, 1e-40);
  t.fill_row(1, 1.0);
  t.fill_row(2, 1e-20);
  Tile h(DType::float16, 3, 1100, true);
  h.fill_random(1e-6);
  Tile b(DType::bfloat16, 2, 1100, true);
  b.fill_random(1e-39);
  for (Tile* tile : {&t, &h, &b}) {
    context = std::string("FTZ ") + name_of(tile->dtype);
    const Matrix reference = reference_gramian(*tile);
    for (const Variant* v : usable()) {
      const unsigned before = _mm_getcsr();
      _mm_setcsr(before | 0x8040U);
      const Matrix g = gramian(*v, *tile);
      _mm_setcsr(before);
      CHECK(worst_error(g, reference) <= 1e-6);
    }
  }
}
#endif

// ---- combine -------------------------------------------------------------------------------------------------------

std::vector<char> combine(const Variant& v, const Tile& t, const std::vector<double>& c) {
  std::vector<char> out(static_cast<std::size_t>(t.n) * bucket_moo::element_size(t.dtype) + 3, char{0x5a});
  v.combine(t.rows(), c.data(), bucket_moo::ZeroRows::skip, out.data());
  const std::size_t end = out.size() - 3;
  CHECK(out[end] == 0x5a && out[end + 1] == 0x5a && out[end + 2] == 0x5a);
  out.resize(end);
  return out;
}

/// In the documented arithmetic, so that the result is known to the bit: float32 (or float64) in row order, no FMA.
void reference_combine(Tile& t, const std::vector<double>& c, void* out) {
  for (std::int64_t i = 0; i < t.n; ++i) {
    volatile float sum = -0.0F;
    volatile double wide = -0.0;
    bool any = false;
    for (int r = 0; r < t.count(); ++r) {
      const double w = c[static_cast<std::size_t>(r)];
      if (w == 0) continue;
      any = true;
      const volatile float product = static_cast<float>(w) * static_cast<float>(t.value(r, i));
      const volatile double wide_product = w * t.value(r, i);
      sum = sum + product;
      wide = wide + wide_product;
    }
    char* to = static_cast<char*>(out) + static_cast<std::size_t>(i) * bucket_moo::element_size(t.dtype);
    put(t.dtype, to, !any ? 0.0 : t.dtype == DType::float64 ? wide : static_cast<double>(sum));
  }
}

void check_combine(Tile& t, const std::vector<double>& c) {
  std::vector<char> expected(static_cast<std::size_t>(t.n) * bucket_moo::element_size(t.dtype));
  reference_combine(t, c, expected.data());
  for (const Variant* v : usable()) {
    const std::string before = context;
    context += std::string(" ") + v->name;
    const std::vector<char> out = combine(*v, t, c);
    bool same = true;
    const std::size_t element = bucket_moo::element_size(t.dtype);
    for (std::size_t i = 0; i < out.size(); i += element) {
      const bool nan = std::isnan(get(t.dtype, &expected[i])) && std::isnan(get(t.dtype, &out[i]));
      same = same && (nan || std::memcmp(&expected[i], &out[i], element) == 0);
    }
    CHECK(same);
    context = before;
  }
}

std::vector<double> random_coefficients(int count) {
  std::vector<double> c;
  for (int r = 0; r < count; ++r) c.push_back(random_unit());
  return c;
}

void combine_of_all_sizes() {
  for (const DType d : kDTypes) {
    for (const std::int64_t n : kSizes) {
      for (const int w : {1, 2, 3, 4, 5, 8, 13}) {
        Tile t(d, w, n, true);
        t.fill_random();
        context = std::string("combine ") + name_of(d) + " n=" + std::to_string(n) + " W=" + std::to_string(w);
        std::vector<double> c = random_coefficients(w);
        check_combine(t, c);
        for (int r = 0; r < w; r += 2) {  // rows left out may hold anything
          c[static_cast<std::size_t>(r)] = 0;
          for (std::int64_t i = 0; i < n; ++i) t.set(r, i, std::nan(""));
        }
        check_combine(t, c);
      }
    }
    Tile t(d, 3, 100003, true);
    t.fill_random();
    context = std::string("combine ") + name_of(d) + " n=100003";
    check_combine(t, random_coefficients(3));
    Tile many(d, 2001, 33);
    many.fill_random();
    context = std::string("combine of 2001 rows ") + name_of(d);
    check_combine(many, random_coefficients(2001));
  }
}

/// One row, coefficient 1: conversion there and back must give every bit pattern; and sums at every kind of edge.
void combine_rounds_once() {
  for (const DType d : {DType::bfloat16, DType::float16}) {
    Tile t(d, 2, 65536 * 2 + 5, true);
    for (std::int64_t i = 0; i < t.n; ++i) {
      const std::uint16_t a = static_cast<std::uint16_t>(i);
      const std::uint16_t b = static_cast<std::uint16_t>(random_bits());
      std::memcpy(t.at(0, i), &a, 2);
      std::memcpy(t.at(1, i), &b, 2);
    }
    context = std::string("every pattern ") + name_of(d);
    check_combine(t, {1.0, 0.0});
    check_combine(t, {0.0, 1.0});
    check_combine(t, {0.5, 0.5});
    check_combine(t, {1.0, 1.0});
    check_combine(t, {0.03125, 0.0});
    check_combine(t, {1.0 / 3, 1e-3});
    check_combine(t, {3e37, -1e-30});
    for (const Variant* v : usable()) {
      const std::vector<char> out = combine(*v, t, {1.0, 0.0});
      bool same = true;
      for (std::int64_t i = 0; i < t.n; ++i) {
        const char* const from = &out[static_cast<std::size_t>(i) * 2];
        same = same && (std::isnan(t.value(0, i)) ? std::isnan(get(d, from)) : std::memcmp(t.at(0, i), from, 2) == 0);
      }
      CHECK(same);
    }
  }
  Tile t(DType::float32, 2, 4099);
  for (std::int64_t i = 0; i < t.n; ++i) {
    const std::uint32_t a = static_cast<std::uint32_t>(random_bits());
    std::memcpy(t.at(0, i), &a, 4);
    const std::uint32_t b = i % 7 == 0 ? 0x80000000U : static_cast<std::uint32_t>(random_bits());
    std::memcpy(t.at(1, i), &b, 4);
  }
  context = "random float32 patterns";
  check_combine(t, {1.0, 0.0});
  check_combine(t, {0.5, 2.0});
}

void combine_in_place() {
  for (const DType d : kDTypes) {
    for (const int w : {1, 2, 4, 5, 9, 12}) {
      for (int into = 0; into < w; ++into) {
        const std::int64_t n = 2500;
        Tile t(d, w, n, true);
        t.fill_random();
        std::vector<double> c = random_coefficients(w);
        if (into % 3 == 2) c[static_cast<std::size_t>(into)] = 0;
        context = std::string("in place ") + name_of(d) + " W=" + std::to_string(w) + " into " + std::to_string(into);
        for (const Variant* v : usable()) {
          const std::vector<char> expected = combine(*v, t, c);
          Tile again = t;  // its pointers still point into t: make them its own
          for (std::size_t r = 0; r < again.data.size(); ++r) {
            again.data[r] = again.memory[r].data() + (static_cast<const char*>(t.data[r]) - t.memory[r].data());
          }
          void* const out = again.at(into, 0);
          v->combine(again.rows(), c.data(), bucket_moo::ZeroRows::skip, out);
          CHECK(std::memcmp(out, expected.data(), expected.size()) == 0);
        }
      }
    }
  }
}

void combine_with_extreme_coefficients() {
  for (const DType d : {DType::float32, DType::bfloat16, DType::float16}) {
    Tile t(d, 3, 1100, true);
    t.fill_random();
    const double scale = d == DType::float16 ? 1e-7 : 1e-38;
    t.fill_row(0, scale);
    context = std::string("extreme coefficients ") + name_of(d);
    const std::vector<double> c = {0, 1e50, 1e-42};
    for (const Variant* v : usable()) {
      std::vector<char> out = combine(*v, t, {1 / scale * 0x1p10, 0x1p-140, 0.5});
      const std::size_t element = bucket_moo::element_size(d);
      const double ulp = d == DType::float32 ? 0x1p-23 : d == DType::bfloat16 ? 0x1p-7 : 0x1p-10;
      for (std::int64_t i = 0; i < t.n; ++i) {
        const double expected = t.value(0, i) / scale * 0x1p10 + t.value(1, i) * 0x1p-140 + 0.5 * t.value(2, i);
        const double got = get(d, &out[static_cast<std::size_t>(i) * element]);
        CHECK(std::fabs(got - expected) <= ulp * std::fabs(expected));
      }
      out = combine(*v, t, c);
      CHECK(std::isinf(get(d, out.data())));
    }
  }
}

/// Rows of weight 0 that are read: NaN and Inf come through, finite rows change no value.
void combine_reads_zero_rows_if_told() {
  for (const DType d : kDTypes) {
    Tile t(d, 3, 1100, true);
    t.fill_random();
    t.set(1, 3, std::nan(""));
    t.set(1, 1099, std::numeric_limits<double>::infinity());
    context = std::string("zero rows ") + name_of(d);
    const std::vector<double> c = {0.25, 0.0, -0.5};
    for (const Variant* v : usable()) {
      const std::vector<char> skipped = combine(*v, t, c);
      std::vector<char> read(skipped.size());
      v->combine(t.rows(), c.data(), bucket_moo::ZeroRows::read, read.data());
      const std::size_t element = bucket_moo::element_size(d);
      for (std::int64_t i = 0; i < t.n; ++i) {
        const std::size_t at = static_cast<std::size_t>(i) * element;
        CHECK(std::isfinite(get(d, &skipped[at])));
        const bool bad = i == 3 || i == 1099;
        CHECK(bad ? std::isnan(get(d, &read[at])) : get(d, &read[at]) == get(d, &skipped[at]));
      }
    }
  }
}

// ---- sketch --------------------------------------------------------------------------------------------------------

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

void public_functions_dispatch() {
  context = "dispatch";
  Tile t(DType::float32, 3, 777);
  t.fill_random();
  const Variant& active = bucket_moo::isa::active_variant();
  CHECK(&active == usable().back());
  Matrix g(9);
  bucket_moo::gramian(t.rows(), t.map(), g.data());
  CHECK(same_bits(g, gramian(active, t)));
  const std::vector<double> c = {0.2, 0.3, 0.5};
  std::vector<char> out(777 * 4);
  bucket_moo::combine(t.rows(), c.data(), out.data());
  CHECK(out == combine(active, t, c));
  const bucket_moo::Rows none{nullptr, 0, 5, DType::float32};
  bucket_moo::gramian(none, {nullptr, nullptr, 2}, g.data());
  CHECK(g[0] == 0 && g[1] == 0 && g[3] == 0);
  const bucket_moo::SketchMap map({1, 2, 3}, 64);
  std::vector<float> columns(64);
  bucket_moo::sketch(t.data[0], t.n, t.dtype, map, columns.data());
  CHECK(same_bits(Matrix(columns.begin(), columns.end()), sketch(active, t, 0, map)));
  float zeros[5] = {1, 1, 1, 1, 1};
  bucket_moo::combine(none, nullptr, zeros);
  CHECK(zeros[0] == 0 && zeros[4] == 0);
}

/// Not a check: the numbers for the documentation. Run with the argument "errors".
void print_errors() {
  for (const DType d : kDTypes) {
    for (const bool correlated : {false, true}) {
      Tile t(d, 4, 1 << 20);
      for (int r = 0; r < 4; ++r) {
        for (std::int64_t i = 0; i < t.n; ++i) t.set(r, i, random_unit() + (correlated ? 1.0 : 0.0));
      }
      const Matrix reference = reference_gramian(t);
      for (const Variant* v : usable()) {
        std::printf("%-9s %-9s n=2^20 mean/spread %d: largest error / (|g_i| |g_j|) = %.2e\n", name_of(d), v->name,
                    correlated ? 1 : 0, worst_error(gramian(*v, t), reference));
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "errors") == 0) {
    print_errors();
    return failures != 0;
  }
  gramian_of_all_sizes();
  gramian_of_every_k();
  gramian_of_shared_objectives();
  rows_left_out_change_no_bit();
  non_finite_shows_on_the_diagonal();
  huge_and_tiny_values();
#if defined(__SSE2__)
  flush_to_zero_does_not_matter();
#endif
  combine_of_all_sizes();
  combine_rounds_once();
  combine_in_place();
  combine_with_extreme_coefficients();
  combine_reads_zero_rows_if_told();
  sketch_of_all_sizes();
  sketch_of_zeros_and_non_finite_values();
  public_functions_dispatch();
  std::printf("variants:");
  for (const Variant* v : usable()) std::printf(" %s", v->name);
  std::printf("\n%ld checks, %d failed\n", checks, failures);
  return failures != 0;
}
