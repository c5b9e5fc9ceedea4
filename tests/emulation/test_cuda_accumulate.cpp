// The CUDA kernel of the running sums, on the CPU: against the CPU kernel, to the bit.
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "accumulate.cuh"
#include "checks.hpp"
#include "emulation.hpp"
#include "kernels/accumulate.hpp"
#include "tile.hpp"

namespace {

using bucket_moo::accumulation_dtype;
using bucket_moo::DType;
using bucket_moo::kMaxObjectives;
using bucket_moo::cuda::AccumulateArguments;
using bucket_moo::cuda::launch_accumulate;
using tiles::kDTypes;
using tiles::kLayouts;
using tiles::Layout;
using tiles::name_of;
using tiles::Tile;

/// What goes with the rows of a tile.
struct Pass {
  std::vector<double> coefficient;
  std::vector<int> objective;
  std::vector<double> decay;
  int k;
};

/// Rows of random objectives, one in five left out, with decays of all kinds.
Pass random_pass(int w, int count) {
  Pass pass;
  for (int r = 0; r < w; ++r) {
    pass.coefficient.push_back(tiles::random_bits() % 5 == 0 ? 0.0 : tiles::random_unit());
    pass.objective.push_back(static_cast<int>(tiles::random_bits() % static_cast<unsigned>(count)));
  }
  constexpr double kDecays[] = {0.0, 1.0, 0.9, -0.25};
  for (int i = 0; i < count; ++i) pass.decay.push_back(kDecays[tiles::random_bits() % 4]);
  pass.k = count;
  return pass;
}

/// Of 16-byte aligned rows or not, random, with NaN around them; NaN too where it is not read.
struct Sums {
  Sums(DType d, const Pass& pass, std::int64_t n, bool aligned)
      : dtype(accumulation_dtype(d)),
        size(n),
        tile(dtype, static_cast<int>(pass.decay.size()), n, aligned ? Layout::block : Layout::odd_pitch) {
    for (std::size_t i = 0; i < pass.decay.size(); ++i) {
      if (pass.decay[i] == 0) tile.set_all(static_cast<int>(i), std::nan(""));
    }
  }
  std::vector<char> row(int i) const { return {tile.row(i), tile.row(i) + tile.row_bytes()}; }

  DType dtype;
  std::int64_t size;
  Tile tile;
};

AccumulateArguments arguments_of(const Tile& t, const Pass& pass, Sums& sums) {
  AccumulateArguments arguments;
  arguments.rows = t.device();
  arguments.coefficient = pass.coefficient.data();
  arguments.objective = pass.objective.data();
  arguments.decay = pass.decay.data();
  arguments.k = &pass.k;
  arguments.count = static_cast<int>(pass.decay.size());
  for (int i = 0; i < arguments.count; ++i) arguments.sums[i] = sums.tile.row(i);
  return arguments;
}

/// What each of the sums has to become. Those from k on stay as they are.
std::vector<std::vector<char>> on_the_host(const Tile& t, const Pass& pass, const Sums& sums) {
  std::vector<std::vector<char>> expected;
  for (int i = 0; i < sums.tile.count(); ++i) {
    expected.push_back(sums.row(i));
    if (i >= pass.k || sums.size == 0) continue;
    std::vector<const void*> rows;
    std::vector<double> coefficient;
    for (int r = 0; r < t.count(); ++r) {
      if (pass.objective[static_cast<std::size_t>(r)] != i) continue;
      rows.push_back(t.row(r));
      coefficient.push_back(pass.coefficient[static_cast<std::size_t>(r)]);
    }
    bucket_moo::accumulate({rows.data(), static_cast<int>(rows.size()), t.size, t.dtype}, coefficient.data(),
                           pass.decay[static_cast<std::size_t>(i)], expected.back().data());
  }
  return expected;
}

void check_accumulate(const Tile& t, const Pass& pass, bool aligned) {
  if (tiles::leave_out()) return;
  Sums sums(t.dtype, pass, t.size, aligned);
  const std::vector<std::vector<char>> expected = on_the_host(t, pass, sums);
  char* const begin = sums.tile.row(0);
  const std::int64_t span = sums.tile.row(sums.tile.count() - 1) - begin + static_cast<std::int64_t>(16);
  const std::vector<char> before(begin - 16, begin + span + static_cast<std::int64_t>(sums.tile.row_bytes()));
  CHECK(launch_accumulate(arguments_of(t, pass, sums), nullptr) == cudaSuccess);
  for (int i = 0; i < sums.tile.count(); ++i) {
    CHECK(tiles::same_elements(sums.dtype, sums.row(i), expected[static_cast<std::size_t>(i)]));
    std::memcpy(sums.tile.row(i), before.data() + 16 + (sums.tile.row(i) - begin), sums.tile.row_bytes());
  }
  CHECK(std::memcmp(begin - 16, before.data(), before.size()) == 0);  // and nothing between the sums has changed
}

void sums_of_all_sizes() {
  for (const DType d : kDTypes) {
    for (const std::int64_t n : {0, 1, 7, 8, 1023, 1024, 1025, 2048, 2049, 6000}) {
      for (const int w : {0, 1, 2, 3, 5, 8, 13}) {
        for (const int count : {1, 3, 8}) {
          const Layout layout = kLayouts[(w + n) % 4];
          Tile t(d, w, n, layout);
          checks::context = std::string(name_of(d)) + " n=" + std::to_string(n) + " W=" + std::to_string(w) + " sums " +
                            std::to_string(count) + " layout " + std::to_string(static_cast<int>(layout));
          const Pass pass = random_pass(w, count);
          for (int r = 0; r < w; ++r) {  // rows left out may hold anything
            if (pass.coefficient[static_cast<std::size_t>(r)] == 0) t.set_all(r, std::nan(""));
          }
          check_accumulate(t, pass, (w + count) % 2 == 0);
        }
      }
    }
    bucket_moo::emulation::set_multiprocessors(1);
    Tile t(d, 5, 30003);
    checks::context = std::string("n=30003 ") + name_of(d);
    check_accumulate(t, random_pass(5, 3), true);
    bucket_moo::emulation::set_multiprocessors(2);
  }
}

void one_sum_for_each_row() {
  for (const DType d : kDTypes) {
    Tile t(d, kMaxObjectives, 300);
    Pass pass = random_pass(kMaxObjectives, kMaxObjectives);
    for (int r = 0; r < kMaxObjectives; ++r) pass.objective[static_cast<std::size_t>(r)] = kMaxObjectives - 1 - r;
    checks::context = std::string("one for each row ") + name_of(d);
    check_accumulate(t, pass, true);
    check_accumulate(t, pass, false);
  }
}

/// More rows than are listed at a time.
void sums_of_many_rows() {
  for (const DType d : kDTypes) {
    for (const int w : {2048, 2049, 5000}) {
      Tile t(d, w, 70);
      Pass pass = random_pass(w, 5);
      checks::context = std::string("many rows ") + name_of(d) + " W=" + std::to_string(w);
      check_accumulate(t, pass, true);
      for (std::size_t r = 0; r + 1 < pass.objective.size(); ++r) {
        if (pass.objective[r] == 2) pass.objective[r] = 3;
      }
      pass.objective.back() = 2;  // the only row, in the last window
      pass.coefficient.back() = 0.5;
      pass.decay = {1.0, 0.0, 1.0, 0.0, 0.5};
      check_accumulate(t, pass, true);
    }
  }
}

/// Sums beyond *k, and those of decay 1 without a row; and rows of no sum, which are not read.
void leaves_others_alone() {
  for (const DType d : kDTypes) {
    checks::context = std::string("others ") + name_of(d);
    Tile t(d, 6, 1500);
    Pass pass;
    pass.coefficient = {1, 1, 1, 1, 1, 1};
    pass.objective = {0, 5, 4, -1, 1024, 0};
    pass.decay = {0.0, 1.0, 0.5, 0.0, 0.5, 0.0};
    for (const int k : {6, 5, 4, 3, 1, 0, -1, 100}) {
      pass.k = k;
      check_accumulate(t, pass, true);
      check_accumulate(t, pass, false);
    }
  }
}

/// Rows of coefficient 0 are read where that is asked for, as on the host; those of no sum are not.
void reads_zeros() {
  for (const DType d : kDTypes) {
    checks::context = std::string("zeros ") + name_of(d);
    Tile t(d, 3, 1500);
    t.set_all(1, std::nan(""));
    t.set_all(2, std::nan(""));
    Pass pass;
    pass.coefficient = {0.5, 0.0, 0.0};
    pass.objective = {0, 0, -1};
    pass.decay = {1.0};
    pass.k = 1;
    for (const bool breaks : {true, false}) {
      if (!breaks) t.set_all(1, 3.0);
      Sums sums(d, pass, t.size, true);
      std::vector<char> expected(sums.tile.row_bytes());
      std::memcpy(expected.data(), sums.row(0).data(), expected.size());
      const std::vector<const void*> rows = t.pointers();
      bucket_moo::accumulate({rows.data(), 2, t.size, d}, pass.coefficient.data(), 1.0, expected.data(),
                             bucket_moo::ZeroRows::read);
      AccumulateArguments arguments = arguments_of(t, pass, sums);
      arguments.reads_zeros = true;
      CHECK(launch_accumulate(arguments, nullptr) == cudaSuccess);
      CHECK(tiles::same_elements(sums.dtype, sums.row(0), expected));
    }
  }
}

/// A sum of decay 1 without a row is neither read nor written, nor is one beyond *k: here they are where nobody may.
void does_not_touch_others() {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  void* const memory = mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED && mprotect(static_cast<char*>(memory) + page, page, PROT_NONE) == 0);
  for (const DType d : kDTypes) {
    for (const int k : {1, 2}) {
      checks::context = std::string("not touched ") + name_of(d) + " k=" + std::to_string(k);
      Tile t(d, 2, 100);
      const double coefficient[] = {1.0, k == 1 ? 1.0 : 0.0};
      const int objective[] = {0, 1};
      const double decay[] = {0.0, k == 1 ? 0.0 : 1.0};
      AccumulateArguments arguments;
      arguments.rows = t.device();
      arguments.coefficient = coefficient;
      arguments.objective = objective;
      arguments.decay = decay;
      arguments.k = &k;
      arguments.sums[0] = memory;
      arguments.sums[1] = static_cast<char*>(memory) + page;
      arguments.count = 2;
      CHECK(launch_accumulate(arguments, nullptr) == cudaSuccess);
      CHECK(tiles::get(accumulation_dtype(d), memory) == t.value(0, 0));
    }
  }
  CHECK(munmap(memory, 2 * page) == 0);
}

void special_values_stay() {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  for (const DType d : kDTypes) {
    checks::context = std::string("special values ") + name_of(d);
    const double tiny = d == DType::float64 ? 0x1p-1074 : d == DType::float16 ? 0x1p-24 : 0x1p-133;
    Tile t(d, 4, 40);
    Pass pass;
    pass.coefficient = {1.0, 0x1p-100, -3e37, 1.0};
    pass.objective = {0, 0, 0, 1};
    pass.decay = {0.0, 0.5};
    pass.k = 2;
    t.set_all(3, -0.0);
    constexpr double kValues[] = {std::numeric_limits<double>::quiet_NaN(), kInf, -kInf, 0.0, -0.0};
    for (int i = 0; i < 5; ++i) {
      t.set(0, i, kValues[i]);
      t.set(1, 39 - i, kValues[i]);
      t.set(2, 2 * i, kValues[i]);
      t.set(0, 10 + i, tiny * (i + 1));
    }
    check_accumulate(t, pass, true);
    pass.decay = {0.0, 0.0};
    check_accumulate(t, pass, false);
  }
}

/// Passes in turn are one pass with all their rows.
void passes_add_up() {
  for (const DType d : kDTypes) {
    checks::context = std::string("passes ") + name_of(d);
    Tile t(d, 12, 1100);
    Pass pass = random_pass(12, 3);
    pass.decay = {0.0, 0.0, 0.0};
    Sums at_once(d, pass, t.size, true);
    Sums in_turn(d, pass, t.size, true);
    CHECK(launch_accumulate(arguments_of(t, pass, at_once), nullptr) == cudaSuccess);
    for (int first = 0; first < 12; first += 4) {
      AccumulateArguments arguments = arguments_of(t, pass, in_turn);
      arguments.rows.base = t.row(first);
      arguments.rows.count = 4;
      arguments.coefficient += first;
      arguments.objective += first;
      CHECK(launch_accumulate(arguments, nullptr) == cudaSuccess);
      pass.decay = {1.0, 1.0, 1.0};
    }
    for (int i = 0; i < 3; ++i) CHECK(in_turn.row(i) == at_once.row(i));
  }
}

void accumulate_refuses() {
  checks::context = "refused";
  Tile t(DType::float32, 3, 10);
  const Pass pass = random_pass(3, 2);
  Sums sums(DType::float32, pass, 10, true);
  const AccumulateArguments good = arguments_of(t, pass, sums);
  const auto refused = [&good](auto spoil) {
    AccumulateArguments bad = good;
    spoil(bad);
    return launch_accumulate(bad, nullptr) == cudaErrorInvalidValue;
  };
  const long launches = bucket_moo::emulation::launches();
  CHECK(refused([](AccumulateArguments& a) { a.coefficient = nullptr; }));
  CHECK(refused([](AccumulateArguments& a) { a.objective = nullptr; }));
  CHECK(refused([](AccumulateArguments& a) { a.decay = nullptr; }));
  CHECK(refused([](AccumulateArguments& a) { a.k = nullptr; }));
  CHECK(refused([](AccumulateArguments& a) { a.sums[1] = nullptr; }));
  CHECK(refused([](AccumulateArguments& a) { a.sums[1] = static_cast<char*>(a.sums[1]) + 2; }));
  CHECK(refused([](AccumulateArguments& a) { a.count = -1; }));
  CHECK(refused([](AccumulateArguments& a) { a.count = kMaxObjectives + 1; }));
  CHECK(refused([](AccumulateArguments& a) { a.rows.dtype = static_cast<DType>(17); }));
  CHECK(refused([](AccumulateArguments& a) { a.rows.count = -1; }));
  AccumulateArguments nothing = good;
  nothing.count = 0;
  CHECK(launch_accumulate(nothing, nullptr) == cudaSuccess);
  nothing = good;
  nothing.rows = {};
  nothing.sums[0] = nullptr;
  CHECK(launch_accumulate(nothing, nullptr) == cudaSuccess);
  CHECK(bucket_moo::emulation::launches() == launches);
  CHECK(launch_accumulate(good, nullptr) == cudaSuccess);
  CHECK(bucket_moo::emulation::launches() == launches + 1);
}

}  // namespace

int main() {
  for (const bool reverse : {false, true}) {
    bucket_moo::emulation::set_reverse_order(reverse);
    if (!reverse) sums_of_all_sizes();
    one_sum_for_each_row();
    sums_of_many_rows();
    leaves_others_alone();
    reads_zeros();
    does_not_touch_others();
    special_values_stay();
    passes_add_up();
  }
  accumulate_refuses();
  return checks::finish();
}
