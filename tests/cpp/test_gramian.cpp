// The Gramian on the CPU against plain long double loops, for every instruction set this machine has.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "checks.hpp"
#include "kernel_rows.hpp"
#include "kernels/gramian.hpp"

namespace {

using namespace kernel_rows;
using checks::context;

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

void public_function_dispatches() {
  context = "dispatch";
  Tile t(DType::float32, 3, 777);
  t.fill_random();
  const Variant& active = bucket_moo::isa::active_variant();
  CHECK(&active == usable().back());
  Matrix g(9);
  bucket_moo::gramian(t.rows(), t.map(), g.data());
  CHECK(same_bits(g, gramian(active, t)));
  const bucket_moo::Rows none{nullptr, 0, 5, DType::float32};
  bucket_moo::gramian(none, {nullptr, nullptr, 2}, g.data());
  CHECK(g[0] == 0 && g[1] == 0 && g[3] == 0);
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
    return checks::failed != 0;
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
  public_function_dispatches();
  return kernel_rows::finish();
}
