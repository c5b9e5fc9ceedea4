// The CUDA kernel of the Gramian, on the CPU: against long double loops and the CPU kernel.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "checks.hpp"
#include "emulation.hpp"
#include "gramian.cuh"
#include "kernels/gramian.hpp"
#include "tile.hpp"

namespace {

using bucket_moo::DType;
using bucket_moo::cuda::Grid;
using tiles::kDTypes;
using tiles::kLayouts;
using tiles::kPoison;
using tiles::Layout;
using tiles::name_of;
using tiles::Tile;

/// Rows to objectives, and the same as a table that kernels read.
struct Objectives {
  explicit Objectives(int world) : k(world), share(static_cast<std::size_t>(world), 1.0) {
    for (int r = 0; r < world; ++r) objective.push_back(r);
  }

  bucket_moo::ObjectiveTable table() {
    const std::size_t world = objective.size();
    header = {};
    header.k = k;
    begin.assign(world + 1, 0);
    member.clear();
    leader.assign(world, 0);
    bool alone = k == static_cast<int>(world);
    for (int o = 0; o < k; ++o) {
      for (std::size_t r = 0; r < world; ++r) {
        if (objective[r] != o || share[r] == 0.0) continue;
        member.push_back(static_cast<int>(r));
        alone = alone && o == static_cast<int>(r) && share[r] == 1.0;
      }
      begin[static_cast<std::size_t>(o) + 1] = static_cast<int>(member.size());
    }
    alone = alone && member.size() == world;
    member.resize(world, -1);
    header.one_to_one = alone ? 1 : 0;
    return {&header, leader.data(), objective.data(), share.data(), begin.data(), member.data()};
  }

  int k;
  std::vector<int> objective;
  std::vector<double> share;
  bucket_moo::StepHeader header;
  std::vector<int> leader, begin, member;
};

std::size_t packed_size(int k) { return static_cast<std::size_t>(k) * static_cast<std::size_t>(k + 1) / 2; }
std::size_t at(int i, int j) { return packed_size(i) + static_cast<std::size_t>(j); }

std::vector<double> reference(const Tile& t, const Objectives& o) {
  std::vector<long double> sum(packed_size(o.k), 0.0L);
  std::vector<long double> g(static_cast<std::size_t>(o.k));
  for (std::int64_t i = 0; i < t.size; ++i) {
    std::fill(g.begin(), g.end(), 0.0L);
    for (int r = 0; r < t.count(); ++r) {
      const std::size_t row = static_cast<std::size_t>(r);
      if (o.share[row] == 0) continue;
      g[static_cast<std::size_t>(o.objective[row])] += static_cast<long double>(o.share[row]) * t.value(r, i);
    }
    for (int a = 0; a < o.k; ++a) {
      for (int b = 0; b <= a; ++b) sum[at(a, b)] += g[static_cast<std::size_t>(a)] * g[static_cast<std::size_t>(b)];
    }
  }
  return {sum.begin(), sum.end()};
}

struct Options {
  int likely_k = 0;
  Grid grid = Grid::device;
  bool add = false;
};

/// Tickets, which launches leave as they found them.
struct Tickets {
  ~Tickets() { CHECK(count == std::vector<unsigned>(bucket_moo::cuda::kGramianTickets, 0u)); }
  std::vector<unsigned> count = std::vector<unsigned>(bucket_moo::cuda::kGramianTickets, 0u);
};

/// Launches, with a poisoned output that is guarded behind its end and a workspace of exactly the size asked for.
std::vector<double> gramian(const Tile& t, Objectives* o, Options options) {
  const int k = o == nullptr ? t.count() : o->k;
  const int most = std::min(t.count(), bucket_moo::kMaxObjectives);
  std::vector<double> packed(packed_size(k) + 2, kPoison);
  std::size_t bytes = 0;
  CHECK(bucket_moo::cuda::gramian_workspace_size(most, &bytes) == cudaSuccess);
  std::vector<double> workspace(bytes / sizeof(double) + 2, std::nan(""));
  workspace[bytes / sizeof(double)] = kPoison;
  workspace[bytes / sizeof(double) + 1] = kPoison;
  Tickets tickets;
  bucket_moo::cuda::GramianArguments arguments;
  arguments.tickets = tickets.count.data();
  arguments.rows = t.device();
  if (o != nullptr) arguments.table = o->table();
  arguments.likely_k = options.likely_k;
  arguments.grid = options.grid;
  arguments.add = options.add;
  arguments.packed = packed.data();
  arguments.workspace = workspace.data();
  const long launches = bucket_moo::emulation::launches();
  CHECK(bucket_moo::cuda::launch_gramian(arguments, nullptr) == cudaSuccess);
  CHECK(bucket_moo::emulation::launches() - launches == 1);
  CHECK(packed[packed_size(k)] == kPoison && packed[packed_size(k) + 1] == kPoison);
  CHECK(workspace[bytes / sizeof(double)] == kPoison && workspace[bytes / sizeof(double) + 1] == kPoison);
  packed.resize(packed_size(k));
  return packed;
}

/// Largest |g - expected| / (|g_i| |g_j|).
double worst_error(const std::vector<double>& g, const std::vector<double>& expected, int k) {
  double worst = 0.0;
  for (int i = 0; i < k; ++i) {
    for (int j = 0; j <= i; ++j) {
      const double error = std::fabs(g[at(i, j)] - expected[at(i, j)]);
      if (error == 0) continue;
      const double relative = error / (std::sqrt(expected[at(i, i)]) * std::sqrt(expected[at(j, j)]));
      worst = relative > worst || relative != relative ? relative : worst;
    }
  }
  return worst;
}

constexpr double kTolerance = 2e-6;

void check_gramian(const Tile& t, Objectives* table, Options options) {
  if (tiles::leave_out()) return;
  Objectives own(t.count());
  Objectives& o = table == nullptr ? own : *table;
  const std::vector<double> g = gramian(t, table, options);
  CHECK(worst_error(g, reference(t, o), o.k) <= kTolerance);
  const std::vector<const void*> pointers = t.pointers();
  std::vector<double> of_cpu(static_cast<std::size_t>(o.k) * static_cast<std::size_t>(o.k));
  bucket_moo::gramian({pointers.data(), t.count(), t.size, t.dtype}, {o.objective.data(), o.share.data(), o.k},
                      of_cpu.data());
  std::vector<double> packed;
  for (int i = 0; i < o.k; ++i) {
    for (int j = 0; j <= i; ++j) packed.push_back(of_cpu[static_cast<std::size_t>(i * o.k + j)]);
  }
  CHECK(worst_error(g, packed, o.k) <= kTolerance);
}

void gramian_of_every_k() {
  for (const DType d : kDTypes) {
    for (int k = 1; k <= 64; ++k) {
      if (k > 16 && k % 8 > 1 && k % 3 != 0) continue;
      for (const std::int64_t n : {std::int64_t{1}, std::int64_t{515}, std::int64_t{2600}}) {
        if (k > 16 && n == 515 && d != DType::float16) continue;
        checks::context = std::string(name_of(d)) + " K=" + std::to_string(k) + " n=" + std::to_string(n);
        Tile t(d, k, n, kLayouts[k % 4]);
        check_gramian(t, nullptr, {});
      }
    }
  }
}

void gramian_of_all_sizes() {
  for (const DType d : kDTypes) {
    for (const std::int64_t n : {0, 1, 7, 8, 1023, 1024, 1025, 8192, 20011}) {
      for (const int k : {3, 20}) {
        for (const Layout layout : kLayouts) {
          if (n > 8000 && k > 3 && layout != Layout::block) continue;
          checks::context = std::string(name_of(d)) + " K=" + std::to_string(k) + " n=" + std::to_string(n) +
                            " layout " + std::to_string(static_cast<int>(layout));
          Tile t(d, k, n, layout);
          check_gramian(t, nullptr, {});
          if (n == 0) {
            for (const double x : gramian(t, nullptr, {})) CHECK(x == 0);
          }
        }
      }
    }
  }
}

/// Small pieces: ranks with other alignments must agree on the bits, on other GPUs too.
void bits_do_not_depend_on_alignment_or_gpu() {
  for (const DType d : kDTypes) {
    for (const int k : {5, 18}) {
      checks::context = std::string("bits ") + name_of(d) + " K=" + std::to_string(k);
      Tile aligned(d, k, 9001);
      Tile other(d, k, 9001, Layout::misaligned);
      for (int r = 0; r < k; ++r) std::memcpy(other.row(r), aligned.row(r), aligned.row_bytes());
      for (const bool with_table : {false, true}) {
        if (tiles::leave_out()) continue;
        Objectives o(k);
        std::vector<double> first;
        for (const int multiprocessors : {1, 2, 3, 7}) {
          bucket_moo::emulation::set_multiprocessors(multiprocessors);
          bucket_moo::emulation::set_reverse_order(multiprocessors % 2 == 0);
          Objectives* const table = with_table ? &o : nullptr;
          const std::vector<double> fixed = gramian(aligned, table, {k, Grid::fixed});
          if (first.empty()) first = fixed;
          CHECK(fixed == first);
          CHECK(gramian(other, table, {k, Grid::fixed}) == first);
          const std::vector<double> here = gramian(aligned, table, {k, Grid::device});
          bucket_moo::emulation::set_reverse_order(multiprocessors % 2 != 0);
          CHECK(gramian(aligned, table, {k, Grid::device}) == here);
          CHECK(worst_error(here, first, k) <= kTolerance);
        }
      }
    }
  }
  bucket_moo::emulation::set_multiprocessors(2);
  bucket_moo::emulation::set_reverse_order(false);
}

/// So many blocks that they are added up in groups, of which the last is smaller.
void gramian_of_many_blocks() {
  bucket_moo::emulation::set_multiprocessors(19);
  for (const DType d : kDTypes) {
    for (const int k : {3, 18}) {
      checks::context = std::string("many blocks ") + name_of(d) + " K=" + std::to_string(k);
      Tile t(d, k, 60001);
      std::vector<double> first;
      for (const bool reverse : {false, true}) {
        bucket_moo::emulation::set_reverse_order(reverse);
        check_gramian(t, nullptr, {});
        check_gramian(t, nullptr, {0, Grid::fixed});
        const std::vector<double> g = gramian(t, nullptr, {});
        if (first.empty()) first = g;
        CHECK(g == first);
      }
    }
  }
  bucket_moo::emulation::set_multiprocessors(2);
  bucket_moo::emulation::set_reverse_order(false);
}

void gramian_with_a_table() {
  for (const DType d : kDTypes) {
    for (const int w : {1, 3, 8, 16, 17, 40, 64}) {
      Tile t(d, w, 1501, kLayouts[w % 4]);
      Objectives o(w);
      for (const int likely : {0, 1, 2, 3, 8, 16, 17, 64}) {
        if (w > 17 && likely > 2 && likely != 17) continue;
        checks::context =
            std::string("table ") + name_of(d) + " W=" + std::to_string(w) + " likely " + std::to_string(likely);
        check_gramian(t, &o, {likely});
      }
    }
  }
}

/// Several ranks an objective, ranks left out (their rows are NaN, which would show), objectives without a rank.
void gramian_of_shared_objectives() {
  for (const DType d : kDTypes) {
    for (const Layout layout : kLayouts) {
      for (const std::int64_t n : {std::int64_t{0}, std::int64_t{9}, std::int64_t{2311}}) {
        Tile t(d, 11, n, layout);
        Objectives o(11);
        o.k = 6;
        o.objective = {2, 0, 0, 5, 2, 4, 0, 5, 5, 2, 4};  // objectives 1 and 3 have no row
        o.share = {0.25, 0.1, 0.6, 0.7, 0.5, 1.0, 0.3, 0.2, 0.1, 0.25, 0.0};
        t.set_all(10, std::nan(""));
        for (const int likely : {0, 6, 11}) {
          checks::context = std::string("shared ") + name_of(d) + " n=" + std::to_string(n);
          check_gramian(t, &o, {likely});
          const std::vector<double> g = gramian(t, &o, {likely});
          for (int i = 0; i < 6; ++i) {
            for (const int empty : {1, 3}) CHECK(g[i > empty ? at(i, empty) : at(empty, i)] == 0);
          }
        }
      }
    }
    // As many objectives as rows, but not one each: one rank counts for another's objective, the last for none.
    Tile t(d, 5, 1300);
    Objectives o(5);
    o.share[2] = 0.0;
    t.set_all(2, std::nan(""));
    checks::context = std::string("left out ") + name_of(d);
    check_gramian(t, &o, {5});
    o.objective = {1, 0, 2, 3, 4};
    check_gramian(t, &o, {5});
  }
  // More ranks than objectives there can be.
  Tile many(DType::bfloat16, 1000, 130);
  Objectives o(1000);
  for (const int k : {7, 64}) {
    o.k = k;
    for (std::size_t r = 0; r < 1000; ++r) {
      o.objective[r] = static_cast<int>(r) % k;
      o.share[r] = 0.01;
    }
    checks::context = "1000 ranks, K=" + std::to_string(k);
    check_gramian(many, &o, {k});
  }
}

void nothing_happens_after_an_error() {
  Tile t(DType::float32, 4, 100);
  Objectives o(4);
  bucket_moo::cuda::GramianArguments arguments;
  Tickets tickets;
  arguments.tickets = tickets.count.data();
  arguments.rows = t.device();
  arguments.table = o.table();
  o.header.error = bucket_moo::StepError::other_call;
  std::vector<double> packed(10, kPoison);
  std::size_t bytes = 0;
  CHECK(bucket_moo::cuda::gramian_workspace_size(4, &bytes) == cudaSuccess);
  std::vector<char> workspace(bytes);
  arguments.likely_k = 4;
  arguments.packed = packed.data();
  arguments.workspace = workspace.data();
  checks::context = "error in the table";
  for (const int k : {4, 0, 70}) {
    o.header.k = k;
    CHECK(bucket_moo::cuda::launch_gramian(arguments, nullptr) == cudaSuccess);
    CHECK(packed == std::vector<double>(10, kPoison));
  }
}

void gramian_adds() {
  for (const int k : {4, 19}) {
    Tile t(DType::float32, k, 3000);
    checks::context = "add K=" + std::to_string(k);
    const std::vector<double> g = gramian(t, nullptr, {});
    const std::vector<double> sum = gramian(t, nullptr, {0, Grid::device, true});
    for (std::size_t i = 0; i < g.size(); ++i) CHECK(sum[i] == kPoison + g[i]);
    Tile none(DType::float32, k, 0);
    for (const double x : gramian(none, nullptr, {0, Grid::device, true})) CHECK(x == kPoison);
  }
}

void huge_and_tiny_values() {
  for (const DType d : {DType::float32, DType::bfloat16}) {
    for (const int w : {6, 20}) {
      for (const double scale : {1e25, 1e-25, 1e-40, 3e18, 1e19, 5e-16, 1e-17, 1e-19, 1e-22, 1e-37}) {
        for (const bool shared : {false, true}) {
          if (w == 20 && shared == (d == DType::float32)) continue;  // takes long
          Tile t(d, w, 2500, w == 6 ? Layout::scattered : Layout::misaligned);
          for (int r = 0; r < w; ++r) t.fill(r, scale);
          t.fill(1, 1.0);                                                // beside an ordinary one,
          t.set_all(2, 0.0);                                             // a zero one,
          for (std::int64_t i = 40; i < t.size; ++i) t.set(4, i, -0.0);  // and one that is mostly zero
          Objectives o(w);
          if (shared) {
            o.k = w - 1;
            o.objective[static_cast<std::size_t>(w - 1)] = 0;
            o.share[0] = 0.3;
            o.share[3] = 0.5;
            o.share[static_cast<std::size_t>(w - 1)] = 0.7;
          }
          checks::context = std::string("scale ") + std::to_string(std::log10(scale)) + " " + name_of(d) +
                            " W=" + std::to_string(w) + (shared ? " shared" : "");
          Objectives* const table = shared ? &o : nullptr;
          check_gramian(t, table, {});
          const std::vector<double> g = gramian(t, table, {});
          for (int i = 0; i < o.k; ++i) {
            CHECK(std::isfinite(g[at(i, i)]) && (g[at(i, i)] > 0) == (i != 2));
            CHECK(g[i > 2 ? at(i, 2) : at(2, i)] == 0);
          }
        }
      }
    }
  }
  for (const double scale : {6e-8, 1e-6, 5e4}) {
    Tile t(DType::float16, 3, 1100);
    for (int r = 0; r < 3; ++r) t.fill(r, scale);
    t.set(0, 0, 6e-8);
    checks::context = "float16 range";
    check_gramian(t, nullptr, {});
  }
}

void extremes_alone() {
  for (const int w : {3, 17}) {
    Tile t(DType::float32, w, 2100);
    t.set_all(0, 0.0);
    t.set_all(1, -0.0);
    t.set_all(2, 0.0);
    t.set(0, 2050, static_cast<double>(std::numeric_limits<float>::denorm_min()));
    t.set(2, 3, static_cast<double>(std::numeric_limits<float>::max()));
    checks::context = "extremes K=" + std::to_string(w);
    check_gramian(t, nullptr, {});
    const std::vector<double> g = gramian(t, nullptr, {});
    CHECK(g[at(0, 0)] > 0);
    CHECK(g[at(1, 1)] == 0);
    CHECK(std::isfinite(g[at(2, 2)]));
  }
}

void non_finite_shows_on_the_diagonal() {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const DType d : kDTypes) {
    for (const double value : {std::nan(""), infinity, -infinity}) {
      for (const std::int64_t place : {0, 700, 1201}) {
        for (const int w : {5, 20}) {
          for (const double share : {1.0, 0.5}) {
            if (tiles::leave_out()) continue;
            Tile t(d, w, 1202);
            if (d == DType::float32) t.fill(1, 1e-30);  // whose part is done again
            t.set(3, place, value);
            Objectives o(w);
            o.share[3] = share;
            checks::context = std::string("non-finite ") + name_of(d) + " W=" + std::to_string(w);
            const std::vector<double> g = gramian(t, &o, {w});
            for (int i = 0; i < w; ++i) CHECK(std::isfinite(g[at(i, i)]) == (i != 3));
            CHECK(std::isfinite(g[at(1, 0)]) && std::isfinite(g[at(4, 2)]));
            CHECK(g[at(1, 1)] > 0);
          }
        }
      }
    }
  }
}

void gramian_refuses() {
  checks::context = "refused";
  Tile t(DType::float32, 3, 10);
  std::vector<double> packed(6);
  std::vector<double> workspace(100000);
  bucket_moo::cuda::GramianArguments good;
  good.rows = t.device();
  Tickets tickets;
  good.tickets = tickets.count.data();
  good.packed = packed.data();
  good.workspace = workspace.data();
  const auto says = [](const bucket_moo::cuda::GramianArguments& a) {
    return bucket_moo::cuda::launch_gramian(a, nullptr);
  };
  CHECK(says(good) == cudaSuccess);
  auto a = good;
  a.rows.dtype = static_cast<DType>(17);
  CHECK(says(a) == cudaErrorInvalidValue);
  a = good;
  a.rows.count = 65;
  CHECK(says(a) == cudaErrorInvalidValue);
  a = good;
  a.rows.size = -1;
  CHECK(says(a) == cudaErrorInvalidValue);
  a = good;
  a.packed = nullptr;
  CHECK(says(a) == cudaErrorInvalidValue);
  a = good;
  a.workspace = nullptr;
  CHECK(says(a) == cudaErrorInvalidValue);
  a = good;
  a.tickets = nullptr;
  CHECK(says(a) == cudaErrorInvalidValue);
  a = good;
  a.rows.base = nullptr;
  CHECK(says(a) == cudaErrorInvalidValue);
  std::size_t bytes = 0;
  CHECK(bucket_moo::cuda::gramian_workspace_size(65, &bytes) == cudaErrorInvalidValue);
  a = good;
  a.rows.count = 0;
  CHECK(says(a) == cudaSuccess);
}

/// An empty tensor has no address.
void empty_rows_may_be_nowhere() {
  checks::context = "nowhere";
  Objectives o(1000);
  o.k = 3;
  for (int& objective : o.objective) objective %= 3;
  std::vector<double> packed(6, kPoison);
  std::vector<double> workspace(200000);
  bucket_moo::cuda::GramianArguments arguments;
  Tickets tickets;
  arguments.tickets = tickets.count.data();
  arguments.rows.count = 1000;
  arguments.table = o.table();
  arguments.packed = packed.data();
  arguments.workspace = workspace.data();
  CHECK(bucket_moo::cuda::launch_gramian(arguments, nullptr) == cudaSuccess);
  CHECK(packed == std::vector<double>(6, 0.0));
}

}  // namespace

int main() {
  gramian_of_every_k();
  gramian_of_all_sizes();
  bits_do_not_depend_on_alignment_or_gpu();
  gramian_of_many_blocks();
  gramian_with_a_table();
  gramian_of_shared_objectives();
  nothing_happens_after_an_error();
  gramian_adds();
  huge_and_tiny_values();
  extremes_alone();
  non_finite_shows_on_the_diagonal();
  gramian_refuses();
  empty_rows_may_be_nowhere();
  return checks::finish();
}
