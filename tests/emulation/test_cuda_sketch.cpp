// The CUDA kernels of the sketch, on the CPU: against loops over the definition.
#include <algorithm>
#include <bucket_moo/sketch.hpp>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "checks.hpp"
#include "emulation.hpp"
#include "sketch.cuh"
#include "tile.hpp"

namespace {

using bucket_moo::DType;
using bucket_moo::RandomKey;
using bucket_moo::SketchMap;
using bucket_moo::StepError;
using bucket_moo::cuda::SketchArguments;
using tiles::kDTypes;
using tiles::kPoison;
using tiles::Layout;
using tiles::name_of;
using tiles::Tile;

/// The step of a sketch: rank r's objective and share. None: a sketch without a table.
struct Step {
  bucket_moo::ObjectiveTable table() {
    header.k = objective.empty() ? 0 : *std::max_element(objective.begin(), objective.end()) + 1;
    return {&header, nullptr, objective.data(), share.data(), nullptr, nullptr};
  }

  std::vector<int> objective;
  std::vector<double> share;
  bucket_moo::StepHeader header = {};
};

struct Sketch {
  std::int64_t width;
  RandomKey key;
  Step* step = nullptr;
  int rank = 0;
  int rows = 1;
};

std::size_t workspace_bytes(const Tile& t, std::int64_t width) {
  std::size_t bytes = 1;
  CHECK(bucket_moo::cuda::sketch_workspace_size(t.size, t.dtype, width, &bytes) == cudaSuccess);
  return bytes;
}

/// Row 0 of the tile, sketched into a poisoned output that is guarded behind its end, with a workspace of exactly the
/// size asked for.
template <class T>
std::vector<double> launched(const Tile& t, const Sketch& sketch) {
  const auto size = static_cast<std::size_t>(sketch.rows) * static_cast<std::size_t>(sketch.width);
  std::vector<T> out(size + 4, static_cast<T>(kPoison));
  const std::size_t bytes = workspace_bytes(t, sketch.width);
  CHECK(bytes % sizeof(T) == 0 && (bytes == 0) == (t.size == 0));
  std::vector<T> workspace(bytes / sizeof(T) + 4, std::numeric_limits<T>::quiet_NaN());
  std::fill(workspace.end() - 4, workspace.end(), static_cast<T>(kPoison));
  SketchArguments arguments;
  arguments.row = t.row(0);
  arguments.size = t.size;
  arguments.dtype = t.dtype;
  arguments.width = sketch.width;
  arguments.seed = sketch.key.seed;
  arguments.bucket = sketch.key.bucket;
  if (sketch.step == nullptr && t.size % 2 == 0) {  // as a pointer
    arguments.key = &sketch.key;
    arguments.seed = ~sketch.key.seed;  // must not matter
  } else if (sketch.step == nullptr) {
    arguments.step = sketch.key.step;
  } else {
    arguments.step = ~sketch.key.step;  // must not matter
    arguments.table = sketch.step->table();
    sketch.step->header.step = static_cast<std::int64_t>(sketch.key.step);
  }
  arguments.rank = sketch.rank;
  arguments.rows = sketch.rows;
  arguments.out = out.data();
  arguments.workspace = workspace.data();
  CHECK(bucket_moo::cuda::launch_sketch(arguments, nullptr) == cudaSuccess);
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(out[size + i] == static_cast<T>(kPoison));
    CHECK(workspace[bytes / sizeof(T) + i] == static_cast<T>(kPoison));
  }
  return {out.begin(), out.end() - 4};
}

std::vector<double> launched(const Tile& t, const Sketch& sketch) {
  return t.dtype == DType::float64 ? launched<double>(t, sketch) : launched<float>(t, sketch);
}

struct Column {
  long double sum = 0.0L;
  long double magnitude = 0.0L;
};

std::vector<Column> reference(const Tile& t, const Sketch& sketch) {
  const SketchMap map(sketch.key, sketch.width);
  std::vector<Column> columns(static_cast<std::size_t>(sketch.width));
  for (std::int64_t i = 0; i < t.size; ++i) {
    const std::int64_t c = i % sketch.width ^ map.flip(i / sketch.width);
    const bool negative = (map.signs(i / 64) >> (i % 64) & 1u) != 0;
    Column& column = columns[static_cast<std::size_t>(c)];
    column.sum += negative ? -static_cast<long double>(t.value(0, i)) : static_cast<long double>(t.value(0, i));
    column.magnitude += std::fabs(t.value(0, i));
  }
  return columns;
}

/// Of the sum of a column's magnitudes.
double tolerance(DType d) { return d == DType::float64 ? 5e-15 : 3e-6; }

void check_sketch(const Tile& t, const Sketch& sketch) {
  if (tiles::leave_out()) return;
  const std::vector<double> out = launched(t, sketch);
  const std::vector<Column> columns = reference(t, sketch);
  const auto rank = static_cast<std::size_t>(sketch.rank);
  const int own = sketch.step == nullptr ? 0 : sketch.step->objective[rank];
  const double share = sketch.step == nullptr ? 1.0 : sketch.step->share[rank];
  bool close = true;
  bool others_are_zero = true;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::size_t c = i % columns.size();
    if (static_cast<int>(i / columns.size()) != own) {
      others_are_zero = others_are_zero && out[i] == 0;
    } else {
      const double error = static_cast<double>(std::fabs(out[i] - share * columns[c].sum));
      close = close && error <= tolerance(t.dtype) * share * static_cast<double>(columns[c].magnitude);
    }
  }
  CHECK(close);
  CHECK(others_are_zero);
}

RandomKey random_key() { return {tiles::random_bits(), tiles::random_bits() % 100000, tiles::random_bits() % 50}; }

std::string name_of(const Tile& t, std::int64_t width) {
  return std::string(name_of(t.dtype)) + " n=" + std::to_string(t.size) + " p=" + std::to_string(width);
}

void sketches_of_all_sizes() {
  for (const DType d : kDTypes) {
    for (std::int64_t p = 64; p <= 4096; p *= 2) {
      const std::int64_t sizes[] = {0, 1, 63, 64, 65, p - 1, p, p + 1, 2 * p, 3 * p + 17, 5 * p - 1, 64 * 200 + 17};
      for (const std::int64_t n : sizes) {
        for (const Layout layout : {Layout::block, Layout::misaligned}) {
          Tile t(d, 1, n, layout);
          checks::context = name_of(t, p) + (layout == Layout::block ? "" : " misaligned");
          check_sketch(t, {p, random_key()});
        }
      }
    }
  }
}

/// Several groups of sections, and of them several batches; several tiles at once with that.
void sketches_of_many_runs() {
  bucket_moo::emulation::set_multiprocessors(5);
  for (const DType d : kDTypes) {
    for (const std::int64_t p : {64, 128, 1024, 4096}) {
      Tile t(d, 1, 150 * 4096 + static_cast<std::int64_t>(tiles::random_bits() % 4096));
      checks::context = "many runs, " + name_of(t, p);
      const std::size_t groups = workspace_bytes(t, p) / workspace_bytes(Tile(d, 1, 1), p);
      CHECK(groups > 1);
      check_sketch(t, {p, random_key()});
    }
  }
  Tile t(DType::bfloat16, 1, 3 * 65536 + 5);
  checks::context = name_of(t, 65536);
  check_sketch(t, {65536, random_key()});
  bucket_moo::emulation::set_multiprocessors(2);
}

void every_bit_is_the_same_again() {
  for (const DType d : kDTypes) {
    for (const std::int64_t p : {64, 256, 2048}) {
      Tile t(d, 1, 70000 + 13);
      Tile moved(d, 1, t.size, Layout::misaligned);
      std::memcpy(moved.row(0), t.row(0), t.row_bytes());
      checks::context = "bits, " + name_of(t, p);
      const Sketch sketch{p, random_key()};
      const std::vector<double> first = launched(t, sketch);
      CHECK(launched(t, sketch) == first);
      CHECK(launched(moved, sketch) == first);
      bucket_moo::emulation::set_reverse_order(true);
      CHECK(launched(t, sketch) == first);
      bucket_moo::emulation::set_reverse_order(false);
      for (const int multiprocessors : {1, 5}) {
        bucket_moo::emulation::set_multiprocessors(multiprocessors);
        check_sketch(t, sketch);
      }
      bucket_moo::emulation::set_multiprocessors(2);
    }
  }
}

/// Each element alone: where it goes and with which sign, without rounding.
void elements_go_where_the_map_says() {
  for (const DType d : kDTypes) {
    for (const std::int64_t p : {64, 512, 4096}) {
      Tile t(d, 1, 20 * p + 7);
      t.set_all(0, 0.0);
      checks::context = "one element, " + name_of(t, p);
      const RandomKey key = random_key();
      const SketchMap map(key, p);
      for (int again = 0; again < 20; ++again) {
        const auto i = again == 0 ? t.size - 1 : static_cast<std::int64_t>(tiles::random_bits() >> 1) % t.size;
        t.set(0, i, 0.75);
        std::vector<double> expected(static_cast<std::size_t>(p), 0.0);
        const bool negative = (map.signs(i / 64) >> (i % 64) & 1u) != 0;
        expected[static_cast<std::size_t>(i % p ^ map.flip(i / p))] = negative ? -0.75 : 0.75;
        CHECK(launched(t, {p, key}) == expected);
        t.set(0, i, 0.0);
      }
    }
  }
}

void ranks_fill_the_rows_of_their_objectives() {
  Step step;
  step.objective = {2, 0, 2, 1, 4, 3, 0};
  step.share = {0.25, 1.0, 0.75, 1.0, 1e-20, 1.0 / 3, 1e-30};
  for (const DType d : kDTypes) {
    for (const int rows : {5, 9, 64}) {
      for (int rank = 0; rank < 7; ++rank) {
        Tile t(d, 1, 3001, rank % 2 == 0 ? Layout::block : Layout::misaligned);
        checks::context = "rank " + std::to_string(rank) + ", " + name_of(t, 256);
        check_sketch(t, {256, random_key(), &step, rank, rows});
        Tile none(d, 1, 0);
        for (const double x : launched(none, {256, random_key(), &step, rank, rows})) CHECK(x == 0);
      }
    }
  }
  // The step is read on the device: the same call draws another map in another step.
  Tile t(DType::float32, 1, 3001);
  RandomKey key = random_key();
  const std::vector<double> first = launched(t, {256, key, &step, 1, 5});
  ++key.step;
  const std::vector<double> second = launched(t, {256, key, &step, 1, 5});
  CHECK(first != second);
  --key.step;
  CHECK(launched(t, {256, key, &step, 1, 5}) == first);
}

/// Ranks left out, and all ranks after an error, even if the table is garbage: where their rows are said to be there is
/// no memory, so that the test would not survive a look.
void what_must_not_be_read_is_not() {
  constexpr std::int64_t kWidth = 64;
  constexpr int kRows = 3;
  const auto nowhere = [](std::uintptr_t address) { return reinterpret_cast<void*>(address); };
  Step step;
  const auto all_zeros = [&](DType d, int rank, std::int64_t size, std::uintptr_t address) {
    std::vector<double> out(kRows * kWidth, kPoison);  // enough for float32 too, which leaves the second half alone
    SketchArguments arguments;
    arguments.row = nowhere(address);
    arguments.size = size;
    arguments.dtype = d;
    arguments.width = kWidth;
    arguments.table = step.table();
    arguments.rank = rank;
    arguments.rows = kRows;
    arguments.out = out.data();
    arguments.workspace = nowhere(16);
    CHECK(bucket_moo::cuda::launch_sketch(arguments, nullptr) == cudaSuccess);
    const std::size_t written = d == DType::float64 ? out.size() : out.size() / 2;
    return std::all_of(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(written),
                       [](double x) { return x == 0; });
  };
  for (const DType d : kDTypes) {
    for (const std::int64_t n : {std::int64_t{0}, std::int64_t{5000}, std::int64_t{200000}}) {
      for (const std::uintptr_t address : {16, 24}) {
        step = {{1, 0, 1}, {1.0, 1.0, 0.0}};
        checks::context = std::string("left out, ") + name_of(d);
        CHECK(all_zeros(d, 2, n, address));
        checks::context = std::string("after an error, ") + name_of(d);
        step = {{-77, 1 << 30, 0}, {std::nan(""), 1e300, 1.0}};
        step.header.error = StepError::other_call;
        for (int rank = 0; rank < 3; ++rank) CHECK(all_zeros(d, rank, n, address));
      }
    }
  }
}

void non_finite_reaches_its_column() {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const DType d : kDTypes) {
    for (const std::int64_t p : {64, 1024}) {
      for (const double value : {std::nan(""), infinity, -infinity}) {
        for (const Layout layout : {Layout::block, Layout::misaligned}) {
          Tile t(d, 1, 40003, layout);
          const std::int64_t place = static_cast<std::int64_t>(tiles::random_bits() >> 1) % t.size;
          t.set(0, place, value);
          const RandomKey key = random_key();
          const SketchMap map(key, p);
          const std::int64_t column = place % p ^ map.flip(place / p);
          checks::context = "non-finite, " + name_of(t, p);
          const std::vector<double> out = launched(t, {p, key});
          for (std::int64_t c = 0; c < p; ++c) {
            const double x = out[static_cast<std::size_t>(c)];
            CHECK(std::isfinite(x) == (c != column));
            if (c == column) CHECK(std::isnan(x) == std::isnan(value));
          }
        }
      }
    }
  }
}

void zeros_stay_zeros() {
  for (const DType d : kDTypes) {
    for (const double zero : {0.0, -0.0}) {
      Tile t(d, 1, 9001);
      t.set_all(0, zero);
      checks::context = std::string("zeros, ") + name_of(d);
      for (const double x : launched(t, {128, random_key()})) CHECK(x == 0);
    }
  }
}

void huge_and_tiny_values() {
  for (const double scale : {1e12, 1e-12, 1e30, 1e-30, 1e-38}) {
    for (const DType d : {DType::float32, DType::bfloat16, DType::float64}) {
      Tile t(d, 1, 30011);
      t.fill(0, scale);
      checks::context = "scale " + std::to_string(std::log10(scale)) + ", " + name_of(t, 256);
      check_sketch(t, {256, random_key()});
    }
  }
}

void sketch_refuses() {
  checks::context = "refused";
  Tile t(DType::float32, 1, 100);
  Step step;
  step.objective = {0};
  step.share = {1.0};
  std::vector<float> out(256);
  std::vector<float> workspace(64);
  SketchArguments good;
  good.row = t.row(0);
  good.size = t.size;
  good.width = 64;
  good.out = out.data();
  good.workspace = workspace.data();
  const auto says = [](const SketchArguments& a) { return bucket_moo::cuda::launch_sketch(a, nullptr); };
  CHECK(says(good) == cudaSuccess);
  auto a = good;
  for (const std::int64_t width : {-64, 0, 32, 96, 1 << 29}) {
    a.width = width;
    CHECK(says(a) == cudaErrorInvalidValue);
    std::size_t bytes = 0;
    CHECK(bucket_moo::cuda::sketch_workspace_size(10, DType::float32, width, &bytes) == cudaErrorInvalidValue);
  }
  a = good;
  a.dtype = static_cast<DType>(17);
  CHECK(says(a) == cudaErrorInvalidValue);
  const RandomKey key = {};
  a = good;
  a.table = step.table();
  CHECK(says(a) == cudaSuccess);
  a.key = &key;  // beside a table, whose step it would be
  CHECK(says(a) == cudaErrorInvalidValue);
  a = good;
  a.size = -1;
  CHECK(says(a) == cudaErrorInvalidValue);
  a = good;
  a.row = nullptr;
  CHECK(says(a) == cudaErrorInvalidValue);
  a = good;
  a.out = nullptr;
  CHECK(says(a) == cudaErrorInvalidValue);
  a = good;
  a.workspace = nullptr;
  CHECK(says(a) == cudaErrorInvalidValue);
  for (const int rows : {0, 2}) {  // without a table
    a = good;
    a.rows = rows;
    CHECK(says(a) == cudaErrorInvalidValue);
  }
  good.table = step.table();
  good.rows = 4;
  CHECK(says(good) == cudaSuccess);
  a = good;
  a.rank = -1;
  CHECK(says(a) == cudaErrorInvalidValue);
  a = good;
  a.table.share = nullptr;
  CHECK(says(a) == cudaErrorInvalidValue);
  a = good;
  a.table.objective = nullptr;
  CHECK(says(a) == cudaErrorInvalidValue);
  a = good;  // an empty tensor has no address
  a.size = 0;
  a.row = nullptr;
  a.workspace = nullptr;
  CHECK(says(a) == cudaSuccess);
  std::size_t bytes = 0;
  CHECK(bucket_moo::cuda::sketch_workspace_size(-1, DType::float32, 64, &bytes) == cudaErrorInvalidValue);
  CHECK(bucket_moo::cuda::sketch_workspace_size(1, static_cast<DType>(9), 64, &bytes) == cudaErrorInvalidValue);
  CHECK(bucket_moo::cuda::sketch_workspace_size(1, DType::float32, 64, nullptr) == cudaErrorInvalidValue);
}

}  // namespace

int main() {
  tiles::seed_from_environment();
  sketches_of_all_sizes();
  sketches_of_many_runs();
  every_bit_is_the_same_again();
  elements_go_where_the_map_says();
  ranks_fill_the_rows_of_their_objectives();
  what_must_not_be_read_is_not();
  non_finite_reaches_its_column();
  zeros_stay_zeros();
  huge_and_tiny_values();
  sketch_refuses();
  return checks::finish();
}
