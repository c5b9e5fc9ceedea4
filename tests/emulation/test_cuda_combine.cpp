// The CUDA kernel of the weighted sum, on the CPU: against the CPU kernel, to the bit.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "checks.hpp"
#include "combine.cuh"
#include "emulation.hpp"
#include "kernels/combine.hpp"
#include "tile.hpp"

namespace {

using bucket_moo::DType;
using bucket_moo::cuda::DeviceRows;
using tiles::kDTypes;
using tiles::kLayouts;
using tiles::Layout;
using tiles::name_of;
using tiles::same_elements;
using tiles::Tile;

/// \param skip elements by which the output is off its alignment
void check_combine(const Tile& t, const std::vector<double>& c, int skip) {
  if (tiles::leave_out()) return;
  const std::size_t element = bucket_moo::element_size(t.dtype);
  std::vector<char> expected(t.row_bytes() + 1);  // one more, so that it has an address
  const std::vector<const void*> pointers = t.pointers();
  bucket_moo::combine({pointers.data(), t.count(), t.size, t.dtype}, c.data(), expected.data());
  expected.pop_back();
  std::vector<char> out(t.row_bytes() + 64, char{0x5a});
  const std::size_t start =
      16 - reinterpret_cast<std::uintptr_t>(out.data()) % 16 + static_cast<std::size_t>(skip) * element;
  CHECK(bucket_moo::cuda::launch_combine(t.device(), c.data(), out.data() + start, nullptr) == cudaSuccess);
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (i < start || i >= start + t.row_bytes()) CHECK(out[i] == 0x5a);
  }
  const auto first = out.begin() + static_cast<std::ptrdiff_t>(start);
  CHECK(same_elements(t.dtype, {first, first + static_cast<std::ptrdiff_t>(t.row_bytes())}, expected));
}

std::vector<double> random_coefficients(int count) {
  std::vector<double> c;
  for (int r = 0; r < count; ++r) c.push_back(tiles::random_unit());
  return c;
}

void combine_of_all_sizes() {
  for (const DType d : kDTypes) {
    for (const std::int64_t n : {0, 1, 7, 8, 1023, 1024, 1025, 2048, 2049, 6000}) {
      for (const int w : {1, 2, 3, 4, 5, 8, 13}) {
        const Layout layout = kLayouts[(w + n) % 4];
        Tile t(d, w, n, layout);
        checks::context = std::string("combine ") + name_of(d) + " n=" + std::to_string(n) + " W=" + std::to_string(w) +
                          " layout " + std::to_string(static_cast<int>(layout));
        std::vector<double> c = random_coefficients(w);
        check_combine(t, c, w % 2);
        for (int r = 0; r < w; r += 2) {  // rows left out may hold anything
          c[static_cast<std::size_t>(r)] = 0;
          t.set_all(r, std::nan(""));
        }
        check_combine(t, c, 0);
      }
    }
    for (const int w : {1024, 1025, 2500}) {
      Tile many(d, w, 2100);
      checks::context = std::string("combine of many rows ") + name_of(d) + " W=" + std::to_string(w);
      std::vector<double> c = random_coefficients(w);
      for (std::size_t r = 3; r < c.size(); r += 3) c[r] = 0;
      check_combine(many, c, 0);
      c.assign(c.size(), 0.0);
      c.back() = 0.5;
      check_combine(many, c, 0);
      c.back() = 1e-300;
      check_combine(many, c, 0);
    }
    bucket_moo::emulation::set_multiprocessors(1);
    Tile t(d, 3, 50003);
    checks::context = std::string("combine ") + name_of(d) + " n=50003";
    check_combine(t, random_coefficients(3), 0);
    bucket_moo::emulation::set_multiprocessors(2);
  }
}

void combine_rounds_once() {
  for (const DType d : {DType::bfloat16, DType::float16}) {
    Tile t(d, 2, 65536 + 5);
    for (std::int64_t i = 0; i < t.size; ++i) {
      const std::uint16_t a = static_cast<std::uint16_t>(i);
      const std::uint16_t b = static_cast<std::uint16_t>(tiles::random_bits());
      std::memcpy(t.row(0) + 2 * i, &a, 2);
      std::memcpy(t.row(1) + 2 * i, &b, 2);
    }
    checks::context = std::string("every pattern ") + name_of(d);
    for (const std::vector<double>& c : std::vector<std::vector<double>>{{1, 0},
                                                                         {0, 1},
                                                                         {0.5, 0.5},
                                                                         {1, 1},
                                                                         {0.03125, 0},
                                                                         {1.0 / 3, 1e-3},
                                                                         {3e37, -1e-30},
                                                                         {1e-42, 1},
                                                                         {1e60, 1}}) {
      check_combine(t, c, 0);
    }
  }
  Tile t(DType::float32, 2, 4099);
  for (std::int64_t i = 0; i < t.size; ++i) {
    const std::uint32_t a = static_cast<std::uint32_t>(tiles::random_bits());
    const std::uint32_t b = i % 7 == 0 ? 0x80000000U : static_cast<std::uint32_t>(tiles::random_bits());
    std::memcpy(t.row(0) + 4 * i, &a, 4);
    std::memcpy(t.row(1) + 4 * i, &b, 4);
  }
  checks::context = "random float32 patterns";
  check_combine(t, {1.0, 0.0}, 0);
  check_combine(t, {-1.0, -0.0}, 0);
  check_combine(t, {0.5, 2.0}, 0);
  check_combine(t, {1e-45, 2.0}, 0);
  check_combine(t, {std::nan(""), 2.0}, 0);
  check_combine(t, {std::numeric_limits<double>::infinity(), 2.0}, 0);
}

void combine_in_place() {
  for (const DType d : kDTypes) {
    for (const Layout layout : {Layout::block, Layout::misaligned}) {
      for (int into = 0; into < 5; ++into) {
        Tile t(d, 5, 2500, layout);
        std::vector<double> c = random_coefficients(5);
        if (into == 2) c[2] = 0;
        std::vector<char> expected(t.row_bytes());
        const std::vector<const void*> pointers = t.pointers();
        bucket_moo::combine({pointers.data(), 5, t.size, d}, c.data(), expected.data());
        checks::context = std::string("in place ") + name_of(d) + " into " + std::to_string(into);
        CHECK(bucket_moo::cuda::launch_combine(t.device(), c.data(), t.row(into), nullptr) == cudaSuccess);
        CHECK(std::memcmp(t.row(into), expected.data(), expected.size()) == 0);
      }
    }
  }
}

/// A tail in the same launch, as apart from it.
void combine_with_a_tail() {
  for (const DType d : kDTypes) {
    for (const std::int64_t n : {0, 1, 1024, 6000}) {
      for (const std::int64_t tail_size : {0, 1, 31, 700, 5000}) {
        for (const int w : {1, 3, 8, 1025}) {
          if (w > 8 && n > 1) continue;
          Tile t(d, w, n);
          Tile tail(d, w, tail_size, tail_size % 2 == 0 ? Layout::block : Layout::odd_pitch);
          checks::context = std::string("with a tail ") + name_of(d) + " n=" + std::to_string(n) +
                            " tail=" + std::to_string(tail_size) + " W=" + std::to_string(w);
          std::vector<double> c = random_coefficients(w);
          if (w == 3) {
            c[1] = 0;
            t.set_all(1, std::nan(""));
            tail.set_all(1, std::nan(""));
            c[2] = n == 1 ? 1e-300 : c[2];  // summed in float64
          }
          std::vector<char> out(t.row_bytes() + 1), tail_out(tail.row_bytes() + 1, char{0x5a});
          std::vector<char> alone(t.row_bytes() + 1), tail_alone(tail.row_bytes() + 1, char{0x5a});
          using bucket_moo::cuda::launch_combine;
          CHECK(launch_combine(t.device(), c.data(), alone.data(), nullptr) == cudaSuccess);
          CHECK(launch_combine(tail.device(), c.data(), tail_alone.data(), nullptr) == cudaSuccess);
          CHECK(launch_combine(t.device(), out.data(), tail.device(), tail_out.data(), c.data(), nullptr) ==
                cudaSuccess);
          CHECK(out == alone && tail_out == tail_alone);
        }
      }
    }
  }
  checks::context = "tails refused";
  Tile t(DType::float32, 3, 10);
  const Tile other(DType::bfloat16, 3, 10);
  const Tile fewer(DType::float32, 2, 10);
  const Tile apart(DType::float32, 3, 10, Layout::scattered);
  const double c[] = {1, 2, 3};
  float out[20];
  for (const Tile* const wrong : {&other, &fewer, &apart}) {
    CHECK(bucket_moo::cuda::launch_combine(t.device(), out, wrong->device(), out + 10, c, nullptr) ==
          cudaErrorInvalidValue);
  }
  CHECK(bucket_moo::cuda::launch_combine(t.device(), out, t.device(), nullptr, c, nullptr) == cudaErrorInvalidValue);
}

/// float32 rows and tail to 16 bits, as on the host.
void combine_to_another_dtype() {
  for (const DType to : {DType::bfloat16, DType::float16}) {
    for (const std::int64_t n : {0, 1, 3, 4, 1023, 1025, 2050}) {
      for (const int w : {1, 2, 3, 5, 8, 13, 1025}) {
        if ((w > 13 && n > 4) || tiles::leave_out()) continue;
        const Layout layout = w > 13 ? Layout::odd_pitch : kLayouts[(w + n) % 4];
        Tile t(DType::float32, w, n, layout);
        Tile tail(DType::float32, w, n / 3, w % 2 == 0 ? Layout::block : Layout::odd_pitch);
        checks::context = std::string("float32 to ") + name_of(to) + " n=" + std::to_string(n) +
                          " W=" + std::to_string(w) + " layout " + std::to_string(static_cast<int>(layout));
        std::vector<double> c = random_coefficients(w);
        if (w == 5) c[2] = 1e-300;  // summed in float64
        if (w == 8) c[3] = 0;
        if (w == 13) c.assign(c.size(), 0.0);
        const auto host = [&](const Tile& rows) {
          std::vector<char> out(static_cast<std::size_t>(rows.size) * 2 + 1);
          const std::vector<const void*> pointers = rows.pointers();
          bucket_moo::combine({pointers.data(), rows.count(), rows.size, rows.dtype}, c.data(), out.data(), to);
          out.pop_back();
          return out;
        };
        for (const std::size_t skip : {0, 2, 8}) {  // bytes off a 16-byte alignment; 8 is enough for 4 elements
          const std::size_t bytes = static_cast<std::size_t>(n) * 2;
          std::vector<char> memory(bytes + 64, char{0x5a});
          std::vector<char> tail_out(static_cast<std::size_t>(tail.size) * 2 + 1, char{0x5a});
          const std::size_t start = 16 - reinterpret_cast<std::uintptr_t>(memory.data()) % 16 + skip;
          CHECK(bucket_moo::cuda::launch_combine(t.device(), memory.data() + start, tail.device(), tail_out.data(), to,
                                                 c.data(), nullptr) == cudaSuccess);
          for (std::size_t i = 0; i < memory.size(); ++i) {
            if (i < start || i >= start + bytes) CHECK(memory[i] == 0x5a);
          }
          CHECK(tail_out.back() == 0x5a);
          tail_out.pop_back();
          const auto first = memory.begin() + static_cast<std::ptrdiff_t>(start);
          CHECK(same_elements(to, {first, first + static_cast<std::ptrdiff_t>(bytes)}, host(t)));
          CHECK(same_elements(to, tail_out, host(tail)));
        }
      }
    }
  }
  checks::context = "from one dtype to another";
  const double c[] = {1, 2, 3};
  double out[10];
  for (const DType from : kDTypes) {
    const Tile t(from, 3, 10);
    for (const DType to : kDTypes) {
      const cudaError_t expected = bucket_moo::combines_to(from, to) ? cudaSuccess : cudaErrorInvalidValue;
      CHECK(bucket_moo::cuda::launch_combine(t.device(), out, {}, nullptr, to, c, nullptr) == expected);
    }
  }
}

/// With shares rows of weight 0 are read, as on the host, and those left out are not.
void combine_reads_zeros() {
  for (const DType d : kDTypes) {
    for (const std::int64_t n : {1, 1025, 6000}) {
      Tile t(d, 4, n);
      Tile tail(d, 4, 7);
      checks::context = std::string("zeros ") + name_of(d) + " n=" + std::to_string(n);
      const std::vector<double> c = {0.5, 0.0, -0.0, 0.0};
      const std::vector<double> share = {1.0, 0.25, 1.0, 0.0};
      for (Tile* const tile : {&t, &tail}) {
        tile->set_all(1, std::nan(""));
        tile->set_all(3, std::numeric_limits<double>::infinity());
      }
      for (const bool breaks : {true, false}) {
        if (!breaks) {
          t.set_all(1, 1.0);
          tail.set_all(1, 1.0);
        }
        const auto host = [&](const Tile& tile) {
          std::vector<char> expected(tile.row_bytes());
          const std::vector<const void*> pointers = tile.pointers();  // of those that are not left out
          bucket_moo::combine({pointers.data(), 3, tile.size, d}, c.data(), expected.data(),
                              bucket_moo::ZeroRows::read);
          return expected;
        };
        std::vector<char> out(t.row_bytes()), tail_out(tail.row_bytes());
        CHECK(bucket_moo::cuda::launch_combine(t.device(), out.data(), tail.device(), tail_out.data(), d, c.data(),
                                               nullptr, share.data()) == cudaSuccess);
        CHECK(same_elements(d, out, host(t)) && same_elements(d, tail_out, host(tail)));
      }
    }
  }
}

/// An empty tensor has no address.
void empty_rows_may_be_nowhere() {
  checks::context = "nowhere";
  DeviceRows rows;
  rows.count = 1000;
  const std::vector<double> c(1000, 1.0);
  CHECK(bucket_moo::cuda::launch_combine(rows, c.data(), nullptr, nullptr) == cudaSuccess);
}

void combine_refuses() {
  checks::context = "refused";
  Tile t(DType::float32, 3, 10);
  const double c[] = {1, 2, 3};
  float out[10];
  DeviceRows rows = t.device();
  CHECK(bucket_moo::cuda::launch_combine(rows, nullptr, out, nullptr) == cudaErrorInvalidValue);
  CHECK(bucket_moo::cuda::launch_combine(rows, c, nullptr, nullptr) == cudaErrorInvalidValue);
  rows.dtype = static_cast<DType>(17);
  CHECK(bucket_moo::cuda::launch_combine(rows, c, out, nullptr) == cudaErrorInvalidValue);
  rows = {};
  rows.size = 10;
  std::fill(out, out + 10, 1.0F);
  CHECK(bucket_moo::cuda::launch_combine(rows, nullptr, out, nullptr) == cudaSuccess);
  CHECK(out[0] == 0 && out[9] == 0 && !std::signbit(out[3]));
}

}  // namespace

int main() {
  combine_of_all_sizes();
  combine_rounds_once();
  combine_in_place();
  combine_with_a_tail();
  combine_to_another_dtype();
  combine_reads_zeros();
  combine_refuses();
  empty_rows_may_be_nowhere();
  return checks::finish();
}
