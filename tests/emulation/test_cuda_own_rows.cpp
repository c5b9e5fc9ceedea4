// What a rank's own rows count for, in sums by objective, in one sum and as they are: against the mean of all rows, in
// float64.
#include <cuda_runtime.h>

#include <algorithm>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/pass_table.hpp>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "checks.hpp"
#include "emulation.hpp"
#include "gramian.cuh"
#include "own_rows.cuh"
#include "passes.cuh"

namespace {

namespace emulation = bucket_moo::emulation;
namespace cuda = bucket_moo::cuda;
using bucket_moo::kMaxObjectives;
using bucket_moo::PassRules;
using bucket_moo::StepError;
using bucket_moo::StepHeader;
using bucket_moo::StepRecord;
using cuda::OwnAddition;
using cuda::OwnRow;
using cuda::WeightedSums;

constexpr auto kMost = static_cast<std::size_t>(kMaxObjectives);

/// A step of some ranks, as the kernels make it.
struct Step {
  explicit Step(int ranks) : world(ranks), objective(static_cast<std::size_t>(ranks)), coefficient(objective.size()) {}

  void add(const std::vector<StepRecord>& records) {
    const PassRules rules{.limits = {.objectives = kMaxObjectives, .expected = 0}};
    CHECK(cuda::launch_add_pass(records.data(), world, rules, sums(), pass(), tickets.data(), {&failed, &told, 1},
                                nullptr) == cudaSuccess);
  }
  bucket_moo::StepSums sums() { return {&header, record.data(), unit.data(), total.data(), rows.data()}; }
  bucket_moo::PassTable pass() { return {objective.data(), coefficient.data(), pass_unit.data()}; }

  int world;
  StepHeader header, failed;
  cuda::StepNotice told;
  std::vector<unsigned> tickets = std::vector<unsigned>(cuda::kGramianTickets);
  std::vector<StepRecord> record = std::vector<StepRecord>(kMost);
  std::vector<double> unit = std::vector<double>(kMost), total = unit, pass_unit = unit;
  std::vector<std::int32_t> rows = std::vector<std::int32_t>(kMost);
  std::vector<int> objective;
  std::vector<double> coefficient;
};

/// Weights of a solve.
struct Weights {
  cuda::BucketResult pointers() { return {&header, &solution, gramian.data(), weights.data()}; }

  StepHeader header;
  bucket_moo::Solution solution;
  std::vector<double> gramian = std::vector<double>(kMost * kMost), weights = std::vector<double>(kMost);
};

StepRecord record_of(int name, double weight, int pass, bool leaves_open) {
  StepRecord record;
  const std::string text = "objective " + std::to_string(name);
  std::memcpy(record.objective.text(), text.data(), text.size());
  record.weight = weight;
  record.step = 7;
  record.pass = pass;
  record.leaves_open = leaves_open ? 1 : 0;
  return record;
}

/// A row of one element, added as the kernel says.
double added(double sum, const OwnAddition& addition, double row) {
  CHECK(addition.k == 1 && (addition.objective == 0 || addition.objective == -1));
  const double before = addition.decay == 0.0 ? 0.0 : addition.decay * sum;
  return addition.objective == 0 ? before + addition.coefficient * row : before;
}

struct Row {
  int name;
  double weight;
  double value;
};

void check_close(double got, double expected, double size) { CHECK(std::fabs(got - expected) <= 1e-12 * size); }

/// Every rank's own rows, by objective and in one sum, add up to the combination of the objectives' means.
void own_rows_add_up(int world, int passes, int names, unsigned seed) {
  checks::context = "W=" + std::to_string(world) + " passes " + std::to_string(passes) + " of " + std::to_string(names);
  std::mt19937 random(seed);
  std::vector<std::vector<Row>> rows(static_cast<std::size_t>(passes));
  std::map<int, double> total;  // over the largest, so that it does not overflow
  std::vector<int> order;
  for (std::vector<Row>& of_pass : rows) {
    for (int r = 0; r < world; ++r) {
      const int name = static_cast<int>(random() % static_cast<unsigned>(names));
      const double kinds[] = {1.0, 0.0, std::ldexp(1.0 + random() % 7, static_cast<int>(random() % 60) - 30), 3.25};
      of_pass.push_back({name, kinds[random() % 4], 1.0 + random() % 100});
      if (!total.contains(name)) order.push_back(name);
      total[name] += of_pass.back().weight;
      if (of_pass.back().weight == 0.0) of_pass.back().value = std::nan("");
    }
  }
  Weights weights;
  weights.header.k = static_cast<int>(order.size());
  for (std::size_t k = 0; k < order.size(); ++k) weights.weights[k] = k == 1 ? 0.0 : 0.5 + static_cast<double>(k);
  const auto weight_of = [&](int name) {
    return weights.weights[static_cast<std::size_t>(std::find(order.begin(), order.end(), name) - order.begin())];
  };

  for (int rank = 0; rank < world; ++rank) {
    std::vector<int> own;  // names, in this rank's order
    std::vector<double> sum, unit(kMost, 5.0);
    std::vector<int> number(kMost, 9);
    double one = 77.0;
    Step step(world);
    for (int p = 0; p < passes; ++p) {
      std::vector<StepRecord> records;
      for (const Row& row : rows[static_cast<std::size_t>(p)]) {
        records.push_back(record_of(row.name, row.weight, p, p + 1 < passes));
      }
      step.add(records);
      const Row& row = rows[static_cast<std::size_t>(p)][static_cast<std::size_t>(rank)];
      const auto at = static_cast<std::size_t>(std::find(own.begin(), own.end(), row.name) - own.begin());
      OwnAddition addition = {};
      OwnRow begun;
      begun.header = &step.header;
      begun.pass = step.pass();
      begun.rank = rank;
      begun.fresh = at == own.size();
      begun.addition = &addition;
      begun.number = &number[at];
      begun.unit = &unit[at];
      if (begun.fresh) {
        own.push_back(row.name);
        sum.push_back(std::nan(""));
      }
      CHECK(cuda::launch_begin_own_row(begun, nullptr) == cudaSuccess);
      sum[at] = added(sum[at], addition, row.value);

      OwnRow known;
      known.header = &step.header;
      known.pass = step.pass();
      known.rank = rank;
      known.fresh = p == 0;
      known.addition = &addition;
      known.total = total[row.name];
      Weights fitting = weights;
      fitting.header.k = step.header.k;  // as if the step had all of its objectives from the start
      known.known = fitting.pointers();
      CHECK(cuda::launch_begin_own_row(known, nullptr) == cudaSuccess);
      one = added(one, addition, row.value);
      known.known = {};
      known.weight = weight_of(row.name);
      const OwnAddition by_name = addition;
      CHECK(cuda::launch_begin_own_row(known, nullptr) == cudaSuccess);
      CHECK(addition.coefficient == by_name.coefficient && addition.objective == by_name.objective);
    }
    double expected = 0.0;
    double size = 0.0;
    for (const std::vector<Row>& of_pass : rows) {
      const Row& row = of_pass[static_cast<std::size_t>(rank)];
      if (row.weight == 0.0) continue;
      const double part = weight_of(row.name) * (row.weight / total[row.name]) * row.value;
      expected += part;
      size += std::fabs(part);
    }
    check_close(one, expected, size);
    std::vector<double> coefficient(kMost, 3.0), share(kMost, 3.0);
    WeightedSums sums;
    sums.sums = step.sums();
    sums.count = static_cast<int>(own.size());
    sums.number = number.data();
    sums.unit = unit.data();
    sums.used = weights.pointers();
    sums.coefficient = coefficient.data();
    sums.share = share.data();
    CHECK(cuda::launch_weigh_sums(sums, nullptr) == cudaSuccess);
    double combined = 0.0;
    for (std::size_t i = 0; i < own.size(); ++i) {
      CHECK(order[static_cast<std::size_t>(number[i])] == own[i]);
      CHECK(share[i] == 0.0 || coefficient[i] == weights.weights[static_cast<std::size_t>(number[i])] * share[i]);
      if (share[i] > 0.0) combined += coefficient[i] * sum[i];
    }
    check_close(combined, expected, size);
    CHECK(coefficient[own.size()] == 3.0 && share[own.size()] == 3.0);
  }
}

/// A row of a step of one pass, which nothing is added to.
void a_row_as_it_is() {
  checks::context = "as it is";
  Step step(3);
  step.add({record_of(0, 3.0, 0, false), record_of(1, 5.0, 0, false), record_of(0, 1.0, 0, false)});
  Weights weights;
  weights.header.k = 2;
  weights.weights[0] = 2.0;
  const double shares[] = {0.75, 1.0, 0.25};
  for (int rank = 0; rank < 3; ++rank) {
    int number = 9;
    double unit = 9.0;
    OwnRow row;
    row.header = &step.header;
    row.pass = step.pass();
    row.rank = rank;
    row.number = &number;
    row.unit = &unit;
    CHECK(cuda::launch_begin_own_row(row, nullptr) == cudaSuccess);
    double coefficient = 0.0, share = 0.0;
    WeightedSums sums{step.sums(), 1, &number, &unit, weights.pointers(), &coefficient, &share};
    CHECK(cuda::launch_weigh_sums(sums, nullptr) == cudaSuccess);
    CHECK(number == rank % 2 && share == shares[rank] && coefficient == weights.weights[number] * share);
  }
}

void errors_make_coefficients_nan() {
  checks::context = "errors";
  Step step(1);
  step.add({record_of(0, 1.0, 0, false)});
  Weights weights;
  int number = 0;
  double unit = 1.0;
  OwnAddition addition = {};
  OwnRow row;
  row.header = &step.header;
  row.pass = step.pass();
  row.addition = &addition;
  row.known = weights.pointers();
  row.total = 1.0;
  double coefficient = 0.0, share = 0.0;
  WeightedSums sums{step.sums(), 1, &number, &unit, weights.pointers(), &coefficient, &share};
  const auto usable = [&] {
    CHECK(cuda::launch_begin_own_row(row, nullptr) == cudaSuccess);
    CHECK(cuda::launch_weigh_sums(sums, nullptr) == cudaSuccess);
    WeightedSums one = sums;
    one.unit = nullptr;
    const double by_objective = coefficient;
    CHECK(cuda::launch_weigh_sums(one, nullptr) == cudaSuccess);
    CHECK(std::isnan(coefficient) ? std::isnan(by_objective) && addition.objective == -1 : coefficient == 1.0);
    return !std::isnan(coefficient);
  };
  CHECK(!usable());  // of no objectives
  weights.header.k = 1;
  CHECK(usable());
  weights.header.error = StepError::other_call;
  CHECK(!usable());
  weights.header.error = StepError::none;
  step.header.error = StepError::other_total;
  step.header.k = 0;
  CHECK(!usable());
  row.number = &number;
  row.unit = &unit;
  CHECK(cuda::launch_begin_own_row(row, nullptr) == cudaSuccess && addition.objective == -1);
}

void refuses() {
  checks::context = "refused";
  Step step(1);
  int number = 0;
  double value = 0.0;
  OwnRow row;
  CHECK(cuda::launch_begin_own_row(row, nullptr) == cudaErrorInvalidValue);
  row.header = &step.header;
  CHECK(cuda::launch_begin_own_row(row, nullptr) == cudaErrorInvalidValue);
  row.number = &number;
  CHECK(cuda::launch_begin_own_row(row, nullptr) == cudaErrorInvalidValue);
  Weights weights;
  WeightedSums sums{step.sums(), 1, nullptr, &value, weights.pointers(), &value, &value};
  for (const int count : {0, kMaxObjectives + 1}) {
    sums.count = count;
    CHECK(cuda::launch_weigh_sums(sums, nullptr) == cudaErrorInvalidValue);
  }
  sums.count = 2;
  sums.unit = nullptr;
  CHECK(cuda::launch_weigh_sums(sums, nullptr) == cudaErrorInvalidValue);
}

}  // namespace

int main() {
  emulation::collect_faults(true);
  unsigned seed = 1;
  for (const int world : {1, 3}) {
    for (const int passes : {1, 2, 5}) {
      for (const int names : {1, 3, 7}) own_rows_add_up(world, passes, names, seed++);
    }
  }
  a_row_as_it_is();
  errors_make_coefficients_nan();
  refuses();
  CHECK(emulation::take_faults().empty());
  return checks::finish();
}
