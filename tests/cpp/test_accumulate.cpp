// The running sum of weighted rows on the CPU, to the bit, for every instruction set this machine has.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "checks.hpp"
#include "kernel_rows.hpp"
#include "kernels/accumulate.hpp"
#include "kernels/combine.hpp"

namespace {

using namespace kernel_rows;
using bucket_moo::accumulation_dtype;
using bucket_moo::ZeroRows;
using checks::context;

constexpr double kDecays[] = {0.0, 1.0, 0.9, -0.5};

/// A sum that ends where its memory does, one element off any alignment.
class Sum {
 public:
  Sum(DType rows, std::int64_t n) : dtype_(accumulation_dtype(rows)), n_(n), memory_(bytes(n + 1)) {}

  void fill(double scale = 1.0) {
    for (std::int64_t i = 0; i < n_; ++i) set(i, scale * random_unit());
  }
  /// What a sum that is not read may hold.
  void fill_with_nan() {
    for (std::int64_t i = 0; i < n_; ++i) set(i, std::nan(""));
  }
  void set(std::int64_t i, double value) { put(dtype_, at(i), value); }
  double value(std::int64_t i) { return get(dtype_, at(i)); }
  void* at(std::int64_t i) { return memory_.data() + bytes(i + 1); }
  bool same_as(const Sum& other) const { return same_elements(dtype_, memory_, other.memory_); }
  double epsilon() const { return dtype_ == DType::float64 ? 0x1p-52 : 0x1p-23; }

 private:
  std::size_t bytes(std::int64_t count) const {
    return static_cast<std::size_t>(count) * bucket_moo::element_size(dtype_);
  }

  DType dtype_;
  std::int64_t n_;
  std::vector<char> memory_;
};

/// In the documented arithmetic: every product and every sum rounded to the sum's type, in order.
Sum reference(Tile& t, const std::vector<double>& c, double decay, Sum sum) {
  for (std::int64_t i = 0; i < t.n; ++i) {
    volatile float narrow = -0.0F;
    volatile double wide = -0.0;
    bool any = false;
    const auto add = [&](double factor, double value) {
      const volatile float product = static_cast<float>(factor) * static_cast<float>(value);
      const volatile double wide_product = factor * value;
      narrow = narrow + product;
      wide = wide + wide_product;
      any = true;
    };
    if (decay != 0) add(decay, sum.value(i));
    for (int r = 0; r < t.count(); ++r) {
      if (c[static_cast<std::size_t>(r)] != 0) add(c[static_cast<std::size_t>(r)], t.value(r, i));
    }
    sum.set(i, !any ? 0.0 : t.dtype == DType::float64 ? wide : static_cast<double>(narrow));
  }
  return sum;
}

void check_accumulate(Tile& t, const std::vector<double>& c, double decay, const Sum& before) {
  const Sum expected = reference(t, c, decay, before);
  for (const Variant* v : usable()) {
    Sum sum = before;
    v->accumulate(t.rows(), c.data(), decay, ZeroRows::skip, sum.at(0));
    const std::string outer = context;
    context += std::string(" ") + v->name + " decay " + std::to_string(decay);
    CHECK(sum.same_as(expected));
    context = outer;
  }
}

std::vector<double> random_coefficients(int count) {
  std::vector<double> c;
  for (int r = 0; r < count; ++r) c.push_back(random_unit());
  return c;
}

void sums_of_all_sizes() {
  for (const DType d : kDTypes) {
    for (const std::int64_t n : kSizes) {
      for (const int w : {0, 1, 2, 3, 4, 5, 8, 13}) {
        Tile t(d, w, n, true);
        t.fill_random();
        Sum before(d, n);
        context = std::string(name_of(d)) + " n=" + std::to_string(n) + " W=" + std::to_string(w);
        std::vector<double> c = random_coefficients(w);
        for (const double decay : kDecays) {
          before.fill();
          if (decay == 0) before.fill_with_nan();
          check_accumulate(t, c, decay, before);
        }
        for (int r = 0; r < w; r += 2) {  // rows left out may hold anything
          c[static_cast<std::size_t>(r)] = 0;
          for (std::int64_t i = 0; i < n; ++i) t.set(r, i, std::nan(""));
        }
        for (const double decay : kDecays) check_accumulate(t, c, decay, before);
      }
    }
    Tile many(d, 2001, 33);
    many.fill_random();
    Sum before(d, 33);
    before.fill();
    context = std::string("2001 rows ") + name_of(d);
    check_accumulate(many, random_coefficients(2001), 1.0, before);
  }
}

/// Against the sum in float64: each of the W + 1 products and W sums is off by half a unit of the largest at most.
void sums_are_accurate() {
  for (const DType d : kDTypes) {
    const int w = 9;
    Tile t(d, w, 1500, true);
    t.fill_random();
    const std::vector<double> c = random_coefficients(w);
    Sum before(d, t.n);
    before.fill();
    context = std::string("accuracy ") + name_of(d);
    for (const Variant* v : usable()) {
      Sum sum = before;
      v->accumulate(t.rows(), c.data(), 0.75, ZeroRows::skip, sum.at(0));
      for (std::int64_t i = 0; i < t.n; ++i) {
        double expected = 0.75 * before.value(i);
        double magnitude = std::fabs(expected);
        for (int r = 0; r < w; ++r) {
          expected += c[static_cast<std::size_t>(r)] * t.value(r, i);
          magnitude += std::fabs(c[static_cast<std::size_t>(r)] * t.value(r, i));
        }
        // A coefficient is rounded too.
        CHECK(std::fabs(sum.value(i) - expected) <= (w + 2) * sum.epsilon() * magnitude);
      }
    }
  }
}

/// Passes that go on from one another add the same rows in the same order as one sum of all of them.
void passes_add_up() {
  for (const DType d : kDTypes) {
    const int passes = 3;
    const int w = 5;
    Tile t(d, passes * w, 1100, true);
    t.fill_random();
    const std::vector<double> c = random_coefficients(passes * w);
    Sum at_once(d, t.n);
    bucket_moo::accumulate(t.rows(), c.data(), 0.0, at_once.at(0));
    Sum sum(d, t.n);
    sum.fill_with_nan();
    for (int pass = 0; pass < passes; ++pass) {
      const bucket_moo::Rows rows{t.data.data() + pass * w, w, t.n, d};
      bucket_moo::accumulate(rows, c.data() + pass * w, pass == 0 ? 0.0 : 1.0, sum.at(0));
    }
    context = std::string("passes ") + name_of(d);
    CHECK(sum.same_as(at_once));

    // Rounded to the rows' type, it is what combine() makes of all rows.
    const std::size_t element = bucket_moo::element_size(d);
    std::vector<char> rounded(static_cast<std::size_t>(t.n) * element);
    std::vector<char> combined(rounded.size());
    const void* const row = sum.at(0);
    const double one = 1.0;
    bucket_moo::combine({&row, 1, t.n, accumulation_dtype(d)}, &one, rounded.data(), d);
    bucket_moo::combine(t.rows(), c.data(), combined.data());
    CHECK(rounded == combined);
  }
}

void special_values_stay() {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  for (const DType d : kDTypes) {
    const double tiny = d == DType::float64 ? 0x1p-1074 : d == DType::float16 ? 0x1p-24 : 0x1p-133;
    const double largest_sum = d == DType::float64 ? 0x1.fffffffffffffp1023 : 0x1.fffffep127;
    Tile t(d, 2, 20, true);
    for (std::int64_t i = 0; i < t.n; ++i) {
      t.set(0, i, 1.0);
      t.set(1, i, 1.0);
    }
    Sum before(d, t.n);
    for (std::int64_t i = 0; i < t.n; ++i) before.set(i, 1.0);
    t.set(0, 0, std::nan(""));
    t.set(1, 1, kInf);
    before.set(2, std::nan(""));
    before.set(3, -kInf);
    t.set(0, 4, kInf);
    before.set(4, -kInf);
    for (int r = 0; r < 2; ++r) t.set(r, 5, -0.0);
    before.set(5, -0.0);
    for (int r = 0; r < 2; ++r) t.set(r, 6, tiny);
    before.set(6, 0.0);
    before.set(7, largest_sum);
    t.set(0, 19, std::nan(""));  // in the last elements, which are fewer than a register's
    before.set(18, kInf);
    for (const double decay : {1.0, 0.5, 2.0}) {
      context = std::string("special values ") + name_of(d);
      check_accumulate(t, {1.0, 1.0}, decay, before);
      check_accumulate(t, {0.25, 0x1p-100}, decay, before);
    }
    for (const Variant* v : usable()) {
      Sum sum = before;
      v->accumulate(t.rows(), t.share.data(), 1.0, ZeroRows::skip, sum.at(0));
      CHECK(std::isnan(sum.value(0)) && std::isnan(sum.value(2)) && std::isnan(sum.value(4)));
      CHECK(sum.value(1) == kInf && sum.value(3) == -kInf);
      CHECK(sum.value(5) == 0 && std::signbit(sum.value(5)));
      CHECK(sum.value(6) == 2 * tiny);
      CHECK(std::isnan(sum.value(19)) && sum.value(18) == kInf);
    }
  }
}

/// A row of coefficient 0 that is read adds zeros, and what 0 does not make a zero of.
void rows_of_coefficient_zero() {
  for (const DType d : kDTypes) {
    context = std::string("coefficient 0 ") + name_of(d);
    Tile t(d, 2, 1100, true);
    t.fill_random();
    t.set(0, 3, std::nan(""));
    t.set(0, 1099, std::numeric_limits<double>::infinity());
    const double c[] = {0.0, 0.5};
    for (const double decay : {0.0, 1.0}) {
      Sum before(d, t.n);
      before.fill();
      for (const Variant* v : usable()) {
        Sum skipped = before;
        Sum read = before;
        v->accumulate(t.rows(), c, decay, ZeroRows::skip, skipped.at(0));
        v->accumulate(t.rows(), c, decay, ZeroRows::read, read.at(0));
        for (std::int64_t i = 0; i < t.n; ++i) {
          CHECK(i == 3 || i == 1099 ? std::isnan(read.value(i)) : read.value(i) == skipped.value(i));
        }
      }
    }
  }
}

/// Decay 1 without rows: not even a signalling NaN changes. Decay 0 without rows: zeros, +0.
void without_rows() {
  for (const DType d : kDTypes) {
    context = std::string("without rows ") + name_of(d);
    const bucket_moo::Rows none{nullptr, 0, 77, d};
    for (const Variant* v : usable()) {
      Sum before(d, 77);
      for (std::int64_t i = 0; i < 77; ++i) {
        const std::uint64_t bits = random_bits();
        std::memcpy(before.at(i), &bits, bucket_moo::element_size(accumulation_dtype(d)));
      }
      Sum sum = before;
      v->accumulate(none, nullptr, 1.0, ZeroRows::skip, nullptr);  // not touched
      v->accumulate(none, nullptr, 1.0, ZeroRows::skip, sum.at(0));
      CHECK(std::memcmp(sum.at(-1), before.at(-1), 78 * bucket_moo::element_size(accumulation_dtype(d))) == 0);
      v->accumulate(none, nullptr, 0.0, ZeroRows::skip, sum.at(0));
      for (std::int64_t i = 0; i < 77; ++i) CHECK(sum.value(i) == 0 && !std::signbit(sum.value(i)));
    }
  }
}

void accumulates_in_float32_or_float64() {
  context = "accumulation_dtype";
  static_assert(accumulation_dtype(DType::bfloat16) == DType::float32);
  CHECK(accumulation_dtype(DType::float32) == DType::float32);
  CHECK(accumulation_dtype(DType::float16) == DType::float32);
  CHECK(accumulation_dtype(DType::float64) == DType::float64);
  // 2^12 ones: a sum in bfloat16 would stay at 2^8.
  Tile t(DType::bfloat16, 4096, 3);
  for (int r = 0; r < t.count(); ++r) {
    for (std::int64_t i = 0; i < t.n; ++i) t.set(r, i, 1.0);
  }
  Sum sum(t.dtype, t.n);
  bucket_moo::accumulate(t.rows(), t.share.data(), 0.0, sum.at(0));
  CHECK(sum.value(0) == 4096 && sum.value(2) == 4096);
}

}  // namespace

int main() {
  sums_of_all_sizes();
  sums_are_accurate();
  passes_add_up();
  special_values_stay();
  rows_of_coefficient_zero();
  without_rows();
  accumulates_in_float32_or_float64();
  return kernel_rows::finish();
}
