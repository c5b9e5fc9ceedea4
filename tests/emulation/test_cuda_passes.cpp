// The tables of a step of several passes: what rows count is what they weigh, whatever weights are counted in, and the
// kernels come to the host's bits.
#include <cuda_runtime.h>

#include <bucket_moo/lanes.hpp>
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
#include "passes.cuh"

namespace {

namespace emulation = bucket_moo::emulation;
using bucket_moo::HostLanes;
using bucket_moo::kMaxObjectives;
using bucket_moo::PassRules;
using bucket_moo::PassShare;
using bucket_moo::StepError;
using bucket_moo::StepHeader;
using bucket_moo::StepRecord;
using bucket_moo::cuda::StepNotice;

constexpr auto kMost = static_cast<std::size_t>(kMaxObjectives);

/// A step, a bucket in all of its passes, and one that is in the even ones alone.
struct Step {
  explicit Step(int world)
      : record(kMost),
        unit(kMost),
        total(kMost),
        rows(kMost),
        objective(static_cast<std::size_t>(world)),
        coefficient(static_cast<std::size_t>(world)),
        pass_unit(kMost) {}

  bucket_moo::StepSums sums() { return {&header, record.data(), unit.data(), total.data(), rows.data()}; }
  bucket_moo::PassTable pass() { return {objective.data(), coefficient.data(), pass_unit.data()}; }

  StepHeader header;
  std::vector<StepRecord> record;
  std::vector<double> unit, total;
  std::vector<std::int32_t> rows;
  std::vector<int> objective;
  std::vector<double> coefficient, pass_unit;
  std::vector<double> bucket[2] = {std::vector<double>(kMost, 7.0), std::vector<double>(kMost, 7.0)};
  std::vector<double> decay = std::vector<double>(kMost);
  PassShare share;
};

/// A table of sums as rows.
struct Table {
  bucket_moo::ObjectiveTable pointers() {
    return {&header, leader.data(), objective.data(), share.data(), begin.data(), member.data()};
  }

  StepHeader header;
  std::vector<int> leader = std::vector<int>(kMost), objective = leader, member = leader,
                   begin = std::vector<int>(kMost + 1);
  std::vector<double> share = std::vector<double>(kMost);
};

/// Names that are told apart for good.
struct Registry {
  explicit Registry(int capacity) : names(static_cast<std::size_t>(capacity)), slot(kMost, -1) {}

  bucket_moo::ObjectiveRegistry pointers() {
    return {names.data(), &count, slot.data(), static_cast<int>(names.size())};
  }

  std::vector<bucket_moo::ObjectiveName> names;
  int count = 0;
  std::vector<int> slot;
};

StepRecord record_of(const std::string& name, double weight, int pass, bool leaves_open) {
  StepRecord record;
  std::memcpy(record.objective.text(), name.data(), name.size());
  record.weight = weight;
  record.step = 5;
  record.pass = pass;
  record.leaves_open = leaves_open ? 1 : 0;
  return record;
}

/// What the kernels are told of, as a collective has it.
struct Report {
  StepHeader first;
  StepNotice told;
  std::vector<unsigned> tickets = std::vector<unsigned>(bucket_moo::cuda::kGramianTickets, 3u);

  cudaError_t add(const std::vector<StepRecord>& records, const PassRules& rules, Step& step) {
    return bucket_moo::cuda::launch_add_pass(records.data(), static_cast<int>(records.size()), rules, step.sums(),
                                             step.pass(), tickets.data(), {&first, &told, 9}, nullptr);
  }
};

void rows_count_what_they_weigh(int world, int passes, int names, unsigned seed) {
  checks::context = "W=" + std::to_string(world) + " passes " + std::to_string(passes) + " of " + std::to_string(names);
  std::mt19937 random(seed);
  const PassRules rules{.limits = {.objectives = names, .expected = 0}};
  Step on_device(world);
  Step on_host(world);
  Report report;
  std::map<std::string, double> weight;                // of all rows, in units of the largest
  std::map<std::string, double> sums[2];               // the reference: of a bucket whose every row is its weight
  std::map<std::string, std::vector<double>> weights;  // by name
  std::vector<double> sum_of[2] = {std::vector<double>(kMost), std::vector<double>(kMost)};
  std::vector<std::string> order;
  for (int p = 0; p < passes; ++p) {
    std::vector<StepRecord> records;
    for (int r = 0; r < world; ++r) {
      const std::string name = "objective " + std::to_string(random() % static_cast<unsigned>(names));
      if (weights[name].empty()) order.push_back(name);
      const double kinds[] = {1.0, 0.0, std::ldexp(1.0 + random() % 7, static_cast<int>(random() % 60) - 30), 3.25};
      const double w = kinds[random() % 4];
      weights[name].push_back(w);
      weight[name] += w;
      for (int b = 0; b <= (p % 2 == 0 ? 1 : 0); ++b) sums[b][name] += w * w;
      records.push_back(record_of(name, w, p, p + 1 < passes));
    }
    bucket_moo::add_pass(HostLanes{}, records.data(), world, rules, on_host.sums(), on_host.pass());
    CHECK(report.add(records, rules, on_device) == cudaSuccess);
    CHECK(report.tickets == std::vector<unsigned>(report.tickets.size(), 0u));
    CHECK(on_device.header.k == static_cast<int>(order.size()) && on_host.header.k == on_device.header.k);
    CHECK(on_device.objective == on_host.objective && on_device.coefficient == on_host.coefficient);
    CHECK(on_device.unit == on_host.unit && on_device.total == on_host.total && on_device.rows == on_host.rows);
    for (int b = 0; b <= (p % 2 == 0 ? 1 : 0); ++b) {
      const int rank = static_cast<int>(random()) & 1 ? world - 1 : 0;
      CHECK(bucket_moo::cuda::launch_begin_addition(&on_device.header, world, rank, on_device.pass(), p == 0,
                                                    on_device.bucket[b].data(), on_device.decay.data(),
                                                    &on_device.share, nullptr) == cudaSuccess);
      double total = 0.0;
      for (const double c : on_device.coefficient) total += c;
      CHECK(on_device.share.weight == total);
      CHECK(on_device.share.of_rank == (total > 0 ? on_device.coefficient[static_cast<std::size_t>(rank)] / total : 0));
      for (std::size_t k = 0; k < order.size(); ++k) {
        const double decay = on_device.decay[k];
        double& sum = sum_of[b][k];
        sum = decay == 0.0 ? 0.0 : decay * sum;
        for (std::size_t r = 0; r < records.size(); ++r) {
          if (on_device.objective[r] == static_cast<int>(k)) sum += on_device.coefficient[r] * records[r].weight;
        }
      }
    }
  }
  Registry registry(names);
  for (int b = 0; b < 2; ++b) {
    Table table;
    CHECK(bucket_moo::cuda::launch_make_sums_table(on_device.sums(), on_device.bucket[b].data(), names,
                                                   table.pointers(), registry.pointers(), {&report.first, &report.told},
                                                   nullptr) == cudaSuccess);
    for (std::size_t k = 0; k < order.size(); ++k) CHECK(registry.slot[k] == static_cast<int>(k));
    CHECK(table.header.k == static_cast<int>(order.size()) && table.header.step == 5);
    int members = 0;
    for (std::size_t k = 0; k < order.size(); ++k) {
      const std::string& name = order[k];
      CHECK(std::string(on_device.record[k].objective.text()) == name);
      CHECK(on_device.rows[k] == static_cast<int>(weights[name].size()));
      const double mean = weight[name] > 0 ? sums[b][name] / weight[name] : 0.0;
      CHECK(std::abs(table.share[k] * sum_of[b][k] - mean) <= 1e-12 * mean);
      CHECK(table.begin[k] == members);
      if (table.share[k] > 0) CHECK(table.member[static_cast<std::size_t>(members++)] == static_cast<int>(k));
      CHECK(table.begin[k + 1] == members);
    }
  }
  CHECK(report.told.header.error == StepError::none);
}

void errors_stay_until_the_next_step() {
  checks::context = "errors";
  Step step(2);
  Report report;
  PassRules rules{.limits = {.objectives = 2, .expected = 2}};
  const auto add = [&](const std::vector<StepRecord>& records) {
    CHECK(report.add(records, rules, step) == cudaSuccess);
  };
  add({record_of("a", 1, 0, true), record_of("a", 1, 0, true)});
  CHECK(step.header.error == StepError::none);  // the number of objectives is not known yet
  add({record_of("b", 1, 1, true), record_of("c", 1, 1, true)});
  CHECK(step.header.error == StepError::more_objectives && step.header.culprit == 3 && step.header.k == 0);
  CHECK(report.told.header.error == StepError::more_objectives && report.told.begun == 9);
  add({record_of("a", 1, 2, false), record_of("a", 1, 2, false)});
  CHECK(step.header.error == StepError::more_objectives && step.header.k == 0);
  add({record_of("a", 1, 0, false), record_of("b", 1, 0, false)});
  CHECK(step.header.error == StepError::none && step.header.k == 2);
  add({record_of("a", 1, 0, false), record_of("a", 1, 0, false)});
  CHECK(step.header.error == StepError::objective_count && step.header.culprit == 1);
  add({record_of("a", 1, 0, true), record_of("a", 1, 0, false)});
  CHECK(step.header.error == StepError::other_call && step.header.culprit == 1);
  rules.one_objective = true;
  add({record_of("a", 1, 0, true), record_of("b", 1, 0, true)});
  CHECK(step.header.error == StepError::several_objectives && step.header.culprit == 1);
  CHECK(report.told.header.error == StepError::more_objectives);  // the first one
}

/// Where every step has the objectives of the first one, it numbers them alike, whatever their order.
void steps_are_numbered_as_the_first() {
  checks::context = "first objectives";
  Step step(2);
  Report report;
  std::vector<bucket_moo::ObjectiveName> names(kMost);
  int count = 0;
  const PassRules rules{.limits = {.objectives = 4, .expected = 0}, .first = {names.data(), &count}};
  const auto add = [&](const std::string& a, const std::string& b, int pass, bool leaves_open) {
    CHECK(report.add({record_of(a, 1, pass, leaves_open), record_of(b, 2, pass, leaves_open)}, rules, step) ==
          cudaSuccess);
    return step.header.error;
  };
  CHECK(add("c", "a", 0, true) == StepError::none && count == 0);
  CHECK(add("b", "a", 1, false) == StepError::none && count == 3 && step.header.k == 3);
  CHECK(add("a", "b", 0, true) == StepError::none && step.header.k == 3);
  CHECK(step.objective == std::vector<int>({1, 2}) && step.rows[0] == 0 && step.rows[1] == 1);
  CHECK(add("b", "c", 1, false) == StepError::none && step.objective == std::vector<int>({2, 0}));
  for (int k = 0; k < 3; ++k) CHECK(std::string(step.record[k].objective.text()) == std::string(1, "cab"[k]));
  CHECK(step.total[0] == 1.0 && step.unit[0] == 2.0 && step.rows[2] == 2);
  CHECK(add("a", "b", 0, true) == StepError::none);
  CHECK(add("a", "b", 1, false) == StepError::other_objectives && step.header.k == 0);  // no row of c
  CHECK(add("a", "d", 0, true) == StepError::other_objectives && step.header.culprit == 4);
  CHECK(add("a", "b", 0, true) == StepError::none && add("c", "c", 1, false) == StepError::none && count == 3);
}

void rows_are_compared_with_what_was_told() {
  checks::context = "totals";
  const auto closed = [](const std::vector<double>& told, double weight, int names) {
    Step step(2);
    Report report;
    std::vector<double> memory(kMost, 99.0);
    bucket_moo::StepSums sums = step.sums();
    sums.told = memory.data();
    for (int p = 0; p < 2; ++p) {
      std::vector<StepRecord> records;
      for (int r = 0; r < 2; ++r) {
        records.push_back(record_of(r == 0 ? "a" : "b", p == 0 ? 1e300 : weight, p, p == 0));
        records.back().told = names;
        records.back().total = told[static_cast<std::size_t>(r)];
      }
      CHECK(bucket_moo::cuda::launch_add_pass(records.data(), 2, {}, sums, step.pass(), report.tickets.data(),
                                              {&report.first, &report.told, 9}, nullptr) == cudaSuccess);
    }
    CHECK(step.header.k == (step.header.error == StepError::none ? 2 : 0));
    CHECK(report.told.header.error == step.header.error);
    return step.header;
  };
  CHECK(closed({3e300, 3e300}, 2e300, 2).error == StepError::none);
  CHECK(closed({3e300 * (1 + 5e-10), 3e300 * (1 - 5e-10)}, 2e300, 2).error == StepError::none);
  CHECK(closed({0.0, 5.0}, 2e300, 0).error == StepError::none);  // not told
  const StepHeader second = closed({3e300, 3e300 * (1 + 2e-9)}, 2e300, 2);
  CHECK(second.error == StepError::other_total && second.culprit == 2);
  const StepHeader first = closed({2e300, 4e300}, 2e300, 2);
  CHECK(first.error == StepError::other_total && first.culprit == 1);
  const StepHeader more = closed({3e300, 3e300}, 2e300, 5);
  CHECK(more.error == StepError::no_rows && more.culprit == 3);
  const StepHeader untold = closed({3e300, -1.0}, 2e300, 2);
  CHECK(untold.error == StepError::untold_objective && untold.culprit == 1);
}

void names_that_are_too_many_are_told() {
  checks::context = "names";
  Step step(2);
  Report report;
  const PassRules rules{.limits = {.objectives = 2, .expected = 0}};
  CHECK(report.add({record_of("a", 1, 0, false), record_of("b", 1, 0, false)}, rules, step) == cudaSuccess);
  Table table;
  Registry registry(1);
  CHECK(bucket_moo::cuda::launch_make_sums_table(step.sums(), step.bucket[0].data(), 2, table.pointers(),
                                                 registry.pointers(), {&report.first, &report.told, 9},
                                                 nullptr) == cudaSuccess);
  CHECK(table.header.error == StepError::too_many_names && table.header.k == 0);
  CHECK(report.told.header.error == StepError::too_many_names && report.told.begun == 9);
}

}  // namespace

int main() {
  emulation::collect_faults(true);
  unsigned seed = 1;
  for (const int world : {1, 2, 3, 40}) {
    for (const int passes : {1, 2, 5}) {
      for (const int names : {1, 3, 64}) rows_count_what_they_weigh(world, passes, names, seed++);
    }
  }
  errors_stay_until_the_next_step();
  steps_are_numbered_as_the_first();
  rows_are_compared_with_what_was_told();
  names_that_are_too_many_are_told();
  CHECK(emulation::take_faults().empty());
  return checks::finish();
}
