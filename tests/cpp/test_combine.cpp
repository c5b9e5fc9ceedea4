// The weighted sum on the CPU, to the bit, for every instruction set this machine has.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "checks.hpp"
#include "kernel_rows.hpp"
#include "kernels/combine.hpp"

namespace {

using namespace kernel_rows;
using checks::context;

std::vector<char> combine(const Variant& v, const Tile& t, const std::vector<double>& c) {
  std::vector<char> out(static_cast<std::size_t>(t.n) * bucket_moo::element_size(t.dtype) + 3, char{0x5a});
  v.combine(t.rows(), c.data(), bucket_moo::ZeroRows::skip, out.data(), t.dtype);
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

/// float32 rows to 16 bits: the float32 sum, rounded once more.
void combine_to_another_dtype() {
  for (const DType to : {DType::bfloat16, DType::float16}) {
    for (const std::int64_t n : kSizes) {
      for (const int w : {0, 1, 2, 4, 5, 9}) {
        Tile t(DType::float32, w, n, true);
        t.fill_random();
        for (std::int64_t i = 0; i < n && w > 0; i += 3) {  // halfway cases among them
          const std::uint32_t bits = static_cast<std::uint32_t>(random_bits()) & 0xfffff000U;
          std::memcpy(t.at(w - 1, i), &bits, 4);
        }
        context = std::string("float32 to ") + name_of(to) + " n=" + std::to_string(n) + " W=" + std::to_string(w);
        std::vector<double> c = random_coefficients(w);
        if (w > 0) c.back() = 1.0;
        for (int r = 0; r + 1 < w; r += 2) c[static_cast<std::size_t>(r)] = 0;
        if (w == 9) c[1] = 1e-50;  // summed in float64
        for (const Variant* v : usable()) {
          const std::vector<char> sum = combine(*v, t, c);
          std::vector<char> expected(static_cast<std::size_t>(n) * 2);
          for (std::size_t i = 0; i < expected.size(); i += 2) {
            put(to, &expected[i], get(DType::float32, &sum[2 * i]));
          }
          std::vector<char> out(expected.size() + 3, char{0x5a});
          v->combine(t.rows(), c.data(), bucket_moo::ZeroRows::skip, out.data(), to);
          CHECK(out[out.size() - 3] == 0x5a && out[out.size() - 2] == 0x5a && out[out.size() - 1] == 0x5a);
          out.resize(expected.size());
          CHECK(same_elements(to, out, expected));
        }
      }
    }
  }
  context = "from one dtype to another";
  for (const DType from : kDTypes) {
    for (const DType to : kDTypes) {
      const bool narrower = from == DType::float32 && (to == DType::bfloat16 || to == DType::float16);
      CHECK(bucket_moo::combines_to(from, to) == (from == to || narrower));
    }
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
          v->combine(again.rows(), c.data(), bucket_moo::ZeroRows::skip, out, d);
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
      v->combine(t.rows(), c.data(), bucket_moo::ZeroRows::read, read.data(), d);
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

void public_function_dispatches() {
  context = "dispatch";
  Tile t(DType::float32, 3, 777);
  t.fill_random();
  const std::vector<double> c = {0.2, 0.3, 0.5};
  std::vector<char> out(777 * 4);
  bucket_moo::combine(t.rows(), c.data(), out.data());
  CHECK(out == combine(bucket_moo::isa::active_variant(), t, c));
  t.set(1, 776, std::nan(""));
  std::vector<char> half(777 * 2), read(777 * 2);
  const std::vector<double> without = {0.2, 0.0, 0.5};
  bucket_moo::combine(t.rows(), without.data(), half.data(), DType::float16);
  CHECK(std::isfinite(get(DType::float16, &half[776 * 2])));
  bucket_moo::combine(t.rows(), without.data(), read.data(), DType::float16, bucket_moo::ZeroRows::read);
  CHECK(std::isnan(get(DType::float16, &read[776 * 2])));
  CHECK(std::memcmp(half.data(), read.data(), 776 * 2) == 0);
  const bucket_moo::Rows none{nullptr, 0, 5, DType::float32};
  float zeros[5] = {1, 1, 1, 1, 1};
  bucket_moo::combine(none, nullptr, zeros);
  CHECK(zeros[0] == 0 && zeros[4] == 0);
}

}  // namespace

int main() {
  combine_of_all_sizes();
  combine_to_another_dtype();
  combine_rounds_once();
  combine_in_place();
  combine_with_extreme_coefficients();
  combine_reads_zero_rows_if_told();
  public_function_dispatches();
  return kernel_rows::finish();
}
