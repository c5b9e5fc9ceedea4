// The CUDA kernels of the bucket scaled by its rank's weight, on the CPU: against loops over the definition.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "checks.hpp"
#include "scale.cuh"
#include "tile.hpp"

namespace {

using bucket_moo::DType;
using bucket_moo::cuda::ScaleArguments;
using tiles::kDTypes;
using tiles::kPoison;
using tiles::Layout;
using tiles::name_of;
using tiles::same_elements;
using tiles::Tile;

bool normal_float32(double c) {
  const float narrow = static_cast<float>(c);
  return c == 0 || std::isnan(c) || std::isnormal(narrow);
}

double scaled(DType d, double c, double share, double x) {
  if (share == 0 && !std::isnan(c)) return 0.0;
  if (d == DType::float64 || !normal_float32(c)) return c * x;
  return static_cast<double>(static_cast<float>(c) * static_cast<float>(x));
}

std::vector<char> bytes_of(const Tile& t) { return {t.row(0), t.row(0) + t.row_bytes()}; }

std::vector<char> expected_bytes(const Tile& t, double c, double share) {
  std::vector<char> bytes(t.row_bytes());
  const std::size_t element = bucket_moo::element_size(t.dtype);
  for (std::int64_t i = 0; i < t.size; ++i) {
    tiles::put(t.dtype, bytes.data() + static_cast<std::size_t>(i) * element, scaled(t.dtype, c, share, t.value(0, i)));
  }
  return bytes;
}

/// What is around the row: NaN, which the kernels must leave as they are.
bool guards_stand(const Tile& t) {
  const std::size_t element = bucket_moo::element_size(t.dtype);
  bool stand = true;
  for (std::size_t i = 0; i < 16; ++i) stand = stand && t.row(0)[t.row_bytes() + i] == char(-1);
  for (std::size_t i = 1; i <= element; ++i) stand = stand && *(t.row(0) - i) == char(-1);
  return stand;
}

ScaleArguments arguments_of(Tile& t, const double& coefficient, const double& share) {
  return {.values = t.row(0), .size = t.size, .dtype = t.dtype, .coefficient = &coefficient, .share = &share};
}

Tile& with_extremes(Tile& t) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double x : {std::nan(""), infinity, -infinity, 0.0, -0.0, 1e-7, 6e4}) {
    if (t.size > 0) t.set(0, static_cast<std::int64_t>(tiles::random_bits() >> 1) % t.size, x);
  }
  return t;
}

void check_scale(Tile& t, double c, double share) {
  const std::vector<char> expected = expected_bytes(t, c, share);
  // Apart: out of one row into another, which is only written.
  const std::vector<char> before = bytes_of(t);
  std::vector<char> apart(before.size() + 16, char{0x5a});
  ScaleArguments into = arguments_of(t, c, share);
  into.from = into.values;
  into.values = apart.data();
  CHECK(bucket_moo::cuda::launch_scale(into, nullptr) == cudaSuccess);
  for (std::size_t i = before.size(); i < apart.size(); ++i) CHECK(apart[i] == 0x5a);
  apart.resize(before.size());
  CHECK(same_elements(t.dtype, apart, expected));
  CHECK(bytes_of(t) == before);
  CHECK(bucket_moo::cuda::launch_scale(arguments_of(t, c, share), nullptr) == cudaSuccess);
  CHECK(same_elements(t.dtype, bytes_of(t), expected));
  CHECK(guards_stand(t));
}

void check_premultiplied(Tile& t, double c, double share) {
  const std::vector<char> expected = expected_bytes(t, c, share);
  const std::vector<char> before = bytes_of(t);
  const std::size_t element = bucket_moo::element_size(t.dtype);
  alignas(8) char factor_bytes[16];
  std::memset(factor_bytes, 0x5a, sizeof(factor_bytes));
  CHECK(bucket_moo::cuda::launch_prepare_premultiplied(arguments_of(t, c, share), factor_bytes, nullptr) ==
        cudaSuccess);
  for (std::size_t i = element; i < sizeof(factor_bytes); ++i) CHECK(factor_bytes[i] == 0x5a);
  CHECK(guards_stand(t));
  // As the reduction would.
  const double factor = tiles::get(t.dtype, factor_bytes);
  CHECK(same_elements(t.dtype, expected_bytes(t, factor, 1.0), expected));
  const bool left_out = share == 0 && !std::isnan(c);
  const bool multiplies = !left_out && (t.dtype == DType::float64 || (t.dtype == DType::float32 && normal_float32(c)));
  if (multiplies) {
    CHECK(bytes_of(t) == before);
  } else {
    CHECK(factor == 1);
  }
}

void scales_all_sizes() {
  for (const DType d : kDTypes) {
    for (const std::int64_t n : {0, 1, 7, 8, 9, 1023, 1024, 4096, 4097, 8192, 20011}) {
      for (const Layout layout : {Layout::block, Layout::misaligned}) {
        for (const double share : {1.0, 0.3, 0.0}) {
          const double c = tiles::random_unit();
          checks::context = std::string("scale ") + name_of(d) + " n=" + std::to_string(n) + " share " +
                            std::to_string(share) + (layout == Layout::block ? "" : " misaligned");
          Tile t(d, 1, n, layout);
          check_scale(with_extremes(t), c, share);
          t.fill(0, 1.0);
          check_premultiplied(with_extremes(t), c, share);
        }
      }
    }
  }
}

void scales_by_any_coefficient() {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const DType d : kDTypes) {
    for (const double c :
         {0.0, -0.0, 1.0, -2.5, 1.0 / 3, 1e-38, 1e-40, 1e40, -1e40, 1e300, 1e-300, infinity, std::nan("")}) {
      for (const double share : {1.0, 0.0, std::nan("")}) {
        if (std::isnan(share) && !std::isnan(c)) continue;
        checks::context = std::string("scale ") + name_of(d) + " by " + std::to_string(c);
        Tile t(d, 1, 3001);
        for (const double scale : {1.0, 1e-30, 1e30}) {
          t.fill(0, scale);
          check_scale(with_extremes(t), c, share);
          t.fill(0, scale);
          check_premultiplied(with_extremes(t), c, share);
        }
      }
    }
  }
}

/// Of every bit pattern.
void scales_round_once() {
  for (const DType d : {DType::bfloat16, DType::float16}) {
    for (const double c : {1.0, 0.5, 1.0 / 3, 1e-3, 1e-42, 3e37}) {
      Tile t(d, 1, 65536 + 5);
      for (std::int64_t i = 0; i < t.size; ++i) {
        const auto bits = static_cast<std::uint16_t>(i);
        std::memcpy(t.row(0) + 2 * i, &bits, 2);
      }
      checks::context = std::string("every pattern of ") + name_of(d) + " by " + std::to_string(c);
      check_scale(t, c, 1.0);
    }
  }
}

void what_is_left_out_is_not_read() {
  for (const DType d : kDTypes) {
    for (const Layout layout : {Layout::block, Layout::misaligned}) {
      Tile t(d, 1, 5003, layout);
      const std::vector<char> zeros(t.row_bytes(), char{0});
      for (const double c : {0.0, 0.5, 1e40}) {
        checks::context = std::string("left out, ") + name_of(d);
        t.set_all(0, std::nan(""));
        CHECK(bucket_moo::cuda::launch_scale(arguments_of(t, c, 0.0), nullptr) == cudaSuccess);
        CHECK(bytes_of(t) == zeros);
        t.set_all(0, std::nan(""));
        double factor[2] = {kPoison, kPoison};
        CHECK(bucket_moo::cuda::launch_prepare_premultiplied(arguments_of(t, c, 0.0), factor, nullptr) == cudaSuccess);
        CHECK(bytes_of(t) == zeros);
        CHECK(tiles::get(d, factor) == 1 && factor[1] == kPoison);
      }
    }
  }
}

void scale_refuses() {
  checks::context = "scale refused";
  Tile t(DType::float32, 1, 10);
  const double one = 1.0;
  float factor = 0.0F;
  const ScaleArguments good = arguments_of(t, one, one);
  const auto refused = [&](const ScaleArguments& a) {
    return bucket_moo::cuda::launch_scale(a, nullptr) == cudaErrorInvalidValue &&
           bucket_moo::cuda::launch_prepare_premultiplied(a, &factor, nullptr) == cudaErrorInvalidValue;
  };
  auto a = good;
  a.values = nullptr;
  CHECK(refused(a));
  a = good;
  a.size = -1;
  CHECK(refused(a));
  a = good;
  a.dtype = static_cast<DType>(17);
  CHECK(refused(a));
  a = good;
  a.coefficient = nullptr;
  CHECK(refused(a));
  a = good;
  a.share = nullptr;
  CHECK(refused(a));
  CHECK(bucket_moo::cuda::launch_prepare_premultiplied(good, nullptr, nullptr) == cudaErrorInvalidValue);
  a = good;
  a.values = nullptr;
  a.size = 0;
  CHECK(bucket_moo::cuda::launch_scale(a, nullptr) == cudaSuccess);
  CHECK(bucket_moo::cuda::launch_prepare_premultiplied(a, &factor, nullptr) == cudaSuccess);
  CHECK(factor == 1.0F);
}

}  // namespace

int main() {
  tiles::seed_from_environment();
  scales_all_sizes();
  scales_by_any_coefficient();
  scales_round_once();
  what_is_left_out_is_not_read();
  scale_refuses();
  return checks::finish();
}
