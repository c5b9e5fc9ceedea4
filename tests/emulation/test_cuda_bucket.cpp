// What a bucket's one small kernel does around its solve, and its weights when they are kept, on the CPU: against loops
// over the definition.
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/objective_table.hpp>
#include <bucket_moo/packed_triangle.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "checks.hpp"
#include "emulation.hpp"
#include "scale.cuh"
#include "solve.cuh"
#include "tile.hpp"

namespace {

using bucket_moo::DType;
using bucket_moo::MethodId;
using bucket_moo::packed_index;
using bucket_moo::packed_size;
using bucket_moo::Solution;
using bucket_moo::Status;
using bucket_moo::StepError;
using bucket_moo::StepHeader;
using tiles::kPoison;
using tiles::Layout;
using tiles::name_of;
using tiles::Tile;

/// A step in which rank r stands for objective r % `objectives`, with weights of which every fifth is 0.
class Step {
 public:
  Step(int world, int objectives, bool weighted)
      : leader(static_cast<std::size_t>(world)),
        objective(leader),
        begin(static_cast<std::size_t>(world) + 1),
        member(leader),
        share(static_cast<std::size_t>(world)) {
    std::vector<bucket_moo::StepRecord> records(static_cast<std::size_t>(world));
    for (int r = 0; r < world; ++r) {
      bucket_moo::StepRecord& record = records[static_cast<std::size_t>(r)];
      record.objective.words[0] = static_cast<std::uint64_t>(r % objectives) + 1;
      record.weight = !weighted ? 1.0 : r % 5 == 4 ? 0.0 : 1.0 + r;
      record.step = 12;
    }
    bucket_moo::make_objective_table(bucket_moo::HostLanes{}, records.data(), world, {}, table());
  }

  bucket_moo::ObjectiveTable table() {
    return {&header, leader.data(), objective.data(), share.data(), begin.data(), member.data()};
  }
  int world() const { return static_cast<int>(share.size()); }

  StepHeader header;
  std::vector<int> leader, objective, begin, member;
  std::vector<double> share;
};

struct Result {
  explicit Result(int k)
      : gramian(static_cast<std::size_t>(k * k), kPoison), weights(static_cast<std::size_t>(k), kPoison) {}
  bucket_moo::cuda::BucketResult pointers() { return {&header, &solution, gramian.data(), weights.data()}; }

  StepHeader header;
  Solution solution;
  std::vector<double> gramian, weights;
};

bool same(const Result& a, const Result& b) {
  return std::memcmp(&a.header, &b.header, sizeof(a.header)) == 0 && a.solution.status == b.solution.status &&
         a.gramian == b.gramian && a.weights == b.weights;
}

/// What ranks sent of a bucket: random messages, each with a row of the tail behind its packed Gramian.
struct Messages {
  Messages(int world, int k, int tail_size, DType dtype) : tail(dtype, world, tail_size) {
    const auto entries = static_cast<std::size_t>(packed_size(k));
    pitch = (entries + 3) * sizeof(double);
    memory.resize(static_cast<std::size_t>(world) * pitch / sizeof(double), std::nan(""));
    for (int r = 0; r < world; ++r) {
      for (std::size_t p = 0; p < entries; ++p) at(r, p) = tiles::random_unit();
    }
    for (std::size_t p = 0; p < entries; ++p) packed.push_back(tiles::random_unit());
  }
  double& at(int r, std::size_t p) { return memory[static_cast<std::size_t>(r) * pitch / sizeof(double) + p]; }

  bucket_moo::cuda::GramianParts parts() const {
    const bucket_moo::cuda::DeviceRows rows = tail.device();
    bucket_moo::cuda::GramianParts parts;
    parts.tail = {rows.base, rows.pitch, static_cast<int>(rows.size), rows.dtype};
    parts.packed = packed.data();
    parts.messages = reinterpret_cast<const std::byte*>(memory.data());
    parts.pitch = static_cast<std::int64_t>(pitch);
    parts.world = tail.count();
    return parts;
  }

  Tile tail;
  std::size_t pitch;
  std::vector<double> memory, packed;
};

bucket_moo::cuda::SolveStep solve_of(Step& step, const bucket_moo::cuda::GramianParts& parts, Result& result,
                                     std::vector<double>& coefficients) {
  bucket_moo::cuda::SolveStep solve;
  solve.method.id = MethodId::mean;
  solve.table = step.table();
  solve.world = step.world();
  solve.k_bound = static_cast<int>(result.weights.size());
  solve.gramian = parts;
  solve.result = result.pointers();
  solve.coefficients = coefficients.data();
  return solve;
}

double tail_product(const Step& step, const Tile& tail, int i, int j) {
  const auto element = [&](int k, std::int64_t at) {
    double sum = 0.0;
    for (int m = step.begin[static_cast<std::size_t>(k)]; m < step.begin[static_cast<std::size_t>(k) + 1]; ++m) {
      const int r = step.member[static_cast<std::size_t>(m)];
      sum += step.share[static_cast<std::size_t>(r)] * tail.value(r, at);
    }
    return sum;
  };
  double sum = 0.0;
  for (std::int64_t at = 0; at < tail.size; ++at) sum += element(i, at) * element(j, at);
  return sum;
}

/// To the bit: which order the sum has is part of what is promised.
void gramian_is_the_sum_of_its_parts(Step& step, Messages& sent) {
  const int k = step.header.k;
  for (int r = 0; r < step.world(); ++r) {
    if (step.share[static_cast<std::size_t>(r)] == 0) sent.tail.set_all(r, std::nan(""));
  }
  for (int without = 0; without < 4; ++without) {
    bucket_moo::cuda::GramianParts parts = sent.parts();
    if (without == 1) parts.tail = {};
    if (without == 2) parts.packed = nullptr;
    if (without == 3) {
      parts.messages = nullptr;
      parts.world = 0;
    }
    Result result(k);
    std::vector<double> coefficients(static_cast<std::size_t>(step.world()), kPoison);
    CHECK(bucket_moo::cuda::launch_solve(solve_of(step, parts, result, coefficients), nullptr) == cudaSuccess);
    CHECK(result.header.k == k && result.header.step == 12 && result.solution.status == Status::ok);
    for (int i = 0; i < k; ++i) {
      for (int j = 0; j <= i; ++j) {
        const auto p = static_cast<std::size_t>(packed_index(i, j));
        double sum = without == 1 ? 0.0 : tail_product(step, sent.tail, i, j);
        if (without != 2) sum += sent.packed[p];
        for (int r = 0; r < parts.world; ++r) sum += sent.at(r, p);
        CHECK(result.gramian[static_cast<std::size_t>(i * k + j)] == sum);
        CHECK(result.gramian[static_cast<std::size_t>(j * k + i)] == sum);
      }
    }
    for (std::size_t r = 0; r < coefficients.size(); ++r) {
      const double weight = result.weights[static_cast<std::size_t>(step.objective[r])];
      CHECK(weight == 1.0 / k && coefficients[r] == weight * step.share[r]);
    }
  }
}

/// Coefficients are those of the rescaled weights.
void the_mean_is_rescaled(Step& step, const Messages& sent) {
  const int k = step.header.k;
  Result result(k);
  std::vector<double> coefficients(static_cast<std::size_t>(step.world()), kPoison);
  bucket_moo::cuda::SolveStep solve = solve_of(step, sent.parts(), result, coefficients);
  solve.method.length = {bucket_moo::Length::fixed, 3.0};
  CHECK(bucket_moo::cuda::launch_solve(solve, nullptr) == cudaSuccess);
  double square = 0.0;
  double lengths = 0.0;
  for (int i = 0; i < k; ++i) {
    for (int j = 0; j < k; ++j) square += result.gramian[static_cast<std::size_t>(i * k + j)] / k / k;
    lengths += std::sqrt(result.gramian[static_cast<std::size_t>(i * k + i)]) / k;  // may be NaN: it is random
  }
  const bool vanishes = !(square > 1e-12 * lengths * lengths);
  CHECK(result.solution.status == (vanishes ? Status::fallback : Status::ok));
  const double expected = (vanishes ? 1.0 : 3.0 / std::sqrt(square)) / k;
  for (const double weight : result.weights) CHECK(std::fabs(weight / expected - 1.0) <= 1e-9);
  for (std::size_t r = 0; r < coefficients.size(); ++r) {
    const double weight = result.weights[static_cast<std::size_t>(step.objective[r])];
    CHECK(coefficients[r] == weight * step.share[r]);
  }
}

void gramians() {
  using bucket_moo::cuda::solve_takes_tail;
  for (const DType dtype : tiles::kDTypes) {
    for (const int world : {1, 2, 3, 8, 40}) {
      for (const int objectives : {1, 3, 40}) {
        for (const int tail : {0, 1, 31, 83}) {
          for (const bool weighted : {false, true}) {
            Step step(world, objectives, weighted);
            checks::context = std::string(name_of(dtype)) + " W=" + std::to_string(world) +
                              " K=" + std::to_string(step.header.k) + " tail=" + std::to_string(tail);
            if (!solve_takes_tail(step.header.k, tail)) continue;
            Messages sent(world, step.header.k, tail, dtype);
            gramian_is_the_sum_of_its_parts(step, sent);
            the_mean_is_rescaled(step, sent);
          }
        }
      }
    }
  }
  checks::context = "longest tails";
  for (const int k : {1, 8, 22, 23, 32, 64}) {
    std::int64_t most = 0;
    while (solve_takes_tail(k, most + 1)) ++most;
    CHECK(most >= (k <= 22 ? 256 : 28));
    Step step(k, k, true);
    Messages sent(k, k, static_cast<int>(most), DType::bfloat16);
    gramian_is_the_sum_of_its_parts(step, sent);
  }
}

void a_step_with_an_error_gives_nan() {
  checks::context = "error";
  Step step(3, 3, false);
  step.header.error = StepError::other_call;
  step.header.k = 0;
  Messages sent(3, 3, 5, DType::float32);
  Result result(3), kept(3);
  const Result before = kept;
  bucket_moo::cuda::DeviceCounters counters;
  std::vector<double> coefficients(3, kPoison);
  bucket_moo::cuda::SolveStep solve = solve_of(step, sent.parts(), result, coefficients);
  solve.kept = kept.pointers();
  solve.counters = &counters;
  CHECK(bucket_moo::cuda::launch_solve(solve, nullptr) == cudaSuccess);
  for (const double c : coefficients) CHECK(std::isnan(c));
  CHECK(result.header.error == StepError::other_call && result.gramian[0] == kPoison);
  CHECK(same(kept, before) && counters.buckets == 0);
}

/// A first solve is kept whatever it is, a later one if its Gramian is finite.
void usable_weights_are_kept() {
  Step step(4, 4, true);
  Messages sent(4, 4, 7, DType::float32);
  Result result(4), kept(4);
  bucket_moo::cuda::DeviceCounters counters;
  std::vector<double> coefficients(4);
  for (const bool finite : {false, true, false, true}) {
    checks::context = std::string("kept, ") + (finite ? "finite" : "not finite");
    const Result before = kept;
    sent.at(2, 1) = finite ? tiles::random_unit() : std::nan("");
    bucket_moo::cuda::SolveStep solve = solve_of(step, sent.parts(), result, coefficients);
    solve.kept = kept.pointers();
    solve.counters = &counters;
    CHECK(bucket_moo::cuda::launch_solve(solve, nullptr) == cudaSuccess);
    CHECK(result.solution.status == (finite ? Status::ok : Status::nonfinite));
    if (finite) {
      CHECK(same(kept, result));
    } else if (before.header.k == 0) {
      CHECK(kept.header.k == 4 && kept.solution.status == Status::nonfinite && kept.weights == result.weights);
    } else {
      CHECK(same(kept, before));
    }
  }
  CHECK(counters.buckets == 4 && counters.nonfinite == 2);
}

void kept_weights_serve() {
  constexpr int kRank = 1;
  for (const DType dtype : tiles::kDTypes) {
    for (const bool usable : {true, false}) {
      for (const int n : {0, 5, 9001}) {
        checks::context =
            std::string(name_of(dtype)) + (usable ? " usable" : " of other objectives") + " n=" + std::to_string(n);
        Step step(4, 3, true);
        Result kept(3), used(3);
        kept.header = {.k = usable ? 3 : 2, .step = 7};
        kept.weights = {0.5, 0.125, 0.375};
        kept.gramian.assign(9, 2.0);
        bucket_moo::cuda::DeviceCounters counters;
        bucket_moo::cuda::ScaleArguments arguments;
        Tile t(dtype, 1, n);
        Tile scaled(dtype, 1, n);
        arguments.values = scaled.row(0);
        arguments.from = t.row(0);
        arguments.size = n;
        arguments.dtype = dtype;
        arguments.share = &step.share[kRank];
        arguments.kept = {step.table(), kRank, kept.pointers(), used.pointers(), &counters};
        CHECK(bucket_moo::cuda::launch_scale(arguments, nullptr) == cudaSuccess);

        const double coefficient = usable ? 0.125 * step.share[kRank] : std::nan("");
        Tile expected(dtype, 1, n);
        arguments.values = expected.row(0);
        arguments.kept = {};
        arguments.coefficient = &coefficient;
        CHECK(bucket_moo::cuda::launch_scale(arguments, nullptr) == cudaSuccess);
        const auto bytes = [](const Tile& tile) {
          return std::vector<char>(tile.row(0), tile.row(0) + tile.row_bytes());
        };
        CHECK(tiles::same_elements(dtype, bytes(scaled), bytes(expected)));
        if (usable) {
          CHECK(same(used, kept) && counters.buckets == 1);
        } else {
          CHECK(used.header.k == 0 && used.header.step == 12 && used.solution.status == Status::nonfinite);
          CHECK(counters.buckets == 0 && used.weights[0] == kPoison);
        }
      }
    }
  }
}

}  // namespace

int main() {
  tiles::seed_from_environment();
  for (const bool reverse : {false, true}) {
    bucket_moo::emulation::set_reverse_order(reverse);
    gramians();
    a_step_with_an_error_gives_nan();
    usable_weights_are_kept();
    kept_weights_serve();
  }
  return checks::finish();
}
