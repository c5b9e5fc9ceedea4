// Ranks that share objectives in groups: records of groups are means of those of ranks, what is wrong with any rank is
// found, and the Gramians of parts add up.
#include <cuda_runtime.h>

#include <bucket_moo/limits.hpp>
#include <bucket_moo/packed_triangle.hpp>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "checks.hpp"
#include "emulation.hpp"
#include "gramian.cuh"
#include "groups.cuh"
#include "passes.cuh"
#include "step.cuh"

namespace {

namespace emulation = bucket_moo::emulation;
using bucket_moo::StepError;
using bucket_moo::StepHeader;
using bucket_moo::StepRecord;

/// A table of so many rows.
struct Table {
  explicit Table(int rows)
      : leader(static_cast<std::size_t>(rows)),
        objective(leader),
        begin(static_cast<std::size_t>(rows) + 1),
        member(leader),
        share(static_cast<std::size_t>(rows)) {}

  bucket_moo::ObjectiveTable pointers() {
    return {&header, leader.data(), objective.data(), share.data(), begin.data(), member.data()};
  }

  StepHeader header;
  std::vector<int> leader, objective, begin, member;
  std::vector<double> share;
};

/// A grid of ranks, and what the kernel makes of a pass.
struct Grid {
  Grid(int across, int inside, std::mt19937& random)
      : across(across),
        inside(inside),
        ranks(static_cast<std::size_t>(across * inside)),
        group(static_cast<std::size_t>(across)),
        member(static_cast<std::size_t>(inside)),
        shares(inside) {
    std::iota(ranks.begin(), ranks.end(), 0);
    std::shuffle(ranks.begin(), ranks.end(), random);
  }

  int at(int a, int i) const { return ranks[static_cast<std::size_t>(a * inside + i)]; }

  void make(const std::vector<StepRecord>& records, int own, bool one_objective) {
    CHECK(bucket_moo::cuda::launch_group_records(records.data(), {ranks.data(), across, inside}, own, one_objective,
                                                 {group.data(), member.data(), &found}, shares.pointers(),
                                                 nullptr) == cudaSuccess);
  }

  int across, inside;
  std::vector<int> ranks;
  std::vector<StepRecord> group, member;
  StepHeader found;
  Table shares;
};

StepRecord record_of(const std::string& name, double weight) {
  StepRecord record;
  std::memcpy(record.objective.text(), name.data(), name.size());
  record.weight = weight;
  record.step = 5;
  record.numel = 100;
  return record;
}

std::vector<StepRecord> draw(const Grid& grid, std::mt19937& random) {
  std::vector<StepRecord> records(grid.ranks.size());
  for (int a = 0; a < grid.across; ++a) {
    for (int i = 0; i < grid.inside; ++i) {
      const double kinds[] = {1.0, 0.0, 3.25, std::ldexp(1.0, static_cast<int>(random() % 1900) - 900)};
      records[static_cast<std::size_t>(grid.at(a, i))] =
          record_of("objective " + std::to_string(a), kinds[random() % 4]);
    }
  }
  return records;
}

void groups_weigh_what_their_ranks_do(int across, int inside, unsigned seed) {
  checks::context = std::to_string(across) + " x " + std::to_string(inside);
  std::mt19937 random(seed);
  Grid grid(across, inside, random);
  const std::vector<StepRecord> records = draw(grid, random);
  const auto weight = [&](int a, int i) { return records[static_cast<std::size_t>(grid.at(a, i))].weight; };
  for (const int own : {0, across - 1}) {
    grid.make(records, own, false);
    CHECK(grid.found.error == StepError::none && grid.found.step == 5);
    for (int a = 0; a < across; ++a) {
      const StepRecord& group = grid.group[static_cast<std::size_t>(a)];
      CHECK(std::string(group.objective.text()) == "objective " + std::to_string(a) && group.numel == 100);
      long double mean = 0.0L;
      for (int i = 0; i < inside; ++i) mean += static_cast<long double>(weight(a, i)) / inside;
      CHECK(std::abs(group.weight - static_cast<double>(mean)) <= 1e-14 * static_cast<double>(mean));
    }
    double largest = 0.0;
    for (int i = 0; i < inside; ++i) largest = std::max(largest, weight(own, i));
    long double total = 0.0L;
    for (int i = 0; i < inside; ++i) {
      if (weight(own, i) >= 0x1p-100 * largest) total += weight(own, i);
    }
    for (int i = 0; i < inside; ++i) {
      const bool counts = largest > 0.0 && weight(own, i) >= 0x1p-100 * largest;
      const double share = counts ? static_cast<double>(weight(own, i) / total) : 0.0;
      CHECK(std::abs(grid.shares.share[static_cast<std::size_t>(i)] - share) <= 1e-14 * share);
    }
  }
}

/// What a table that is made of the groups' records says, of a step of one pass and of one of several.
void found(StepError error, int culprit, std::vector<StepRecord> records, Grid& grid, bool one_objective = false) {
  grid.make(records, 0, one_objective);
  CHECK(grid.found.error == error && grid.found.culprit == culprit && grid.found.k == 0);
  Table table(grid.across);
  StepHeader first;
  bucket_moo::cuda::StepNotice told;
  std::vector<unsigned> tickets(bucket_moo::cuda::kGramianTickets);
  CHECK(bucket_moo::cuda::launch_make_table(grid.group.data(), grid.across, {}, table.pointers(), {}, {},
                                            tickets.data(), {&first, &told, 9}, nullptr, &grid.found) == cudaSuccess);
  CHECK(table.header.error == error && table.header.culprit == culprit && told.header.error == error);
  const int k = error == StepError::none ? grid.across : 0;
  CHECK(table.header.k == k);
  const auto rows = static_cast<std::size_t>(bucket_moo::kMaxObjectives);
  StepHeader header;
  std::vector<StepRecord> record(rows);
  std::vector<double> unit(rows), total(rows), coefficient(rows), pass_unit(rows);
  std::vector<std::int32_t> counted(rows);
  std::vector<int> objective(rows);
  CHECK(bucket_moo::cuda::launch_add_pass(grid.group.data(), grid.across,
                                          {.limits = {}, .one_objective = one_objective},
                                          {&header, record.data(), unit.data(), total.data(), counted.data()},
                                          {objective.data(), coefficient.data(), pass_unit.data()}, tickets.data(),
                                          {&first, &told, 9}, nullptr, &grid.found) == cudaSuccess);
  CHECK(header.error == error && header.culprit == culprit && header.k == k);
}

void what_is_wrong_with_a_rank_is_found() {
  checks::context = "errors";
  std::mt19937 random(7);
  Grid grid(3, 2, random);
  const std::vector<StepRecord> right = draw(grid, random);
  found(StepError::none, 0, right, grid);
  const int last = grid.at(2, 1);
  std::vector<StepRecord> wrong = right;
  wrong[static_cast<std::size_t>(last)] = record_of("objective 1", 1.0);
  found(StepError::several_inside, last, wrong, grid);
  wrong[static_cast<std::size_t>(last)] = right[static_cast<std::size_t>(last)];
  wrong[5].numel = 101;
  found(StepError::other_call, 5, wrong, grid);
  wrong[4].operation = static_cast<std::int32_t>(bucket_moo::Operation::invalid);
  found(StepError::invalid_call, 4, wrong, grid);
  int other = 1;
  while (bucket_moo::same_name(right[0].objective, right[static_cast<std::size_t>(other)].objective)) ++other;
  found(StepError::several_objectives, other, right, grid, true);
}

void gramians_add_up(int k, int world, bool with_packed, unsigned seed) {
  checks::context = "K=" + std::to_string(k) + " of " + std::to_string(world);
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  const int bound = std::min(k + 3, bucket_moo::kMaxObjectives);
  const auto size = static_cast<std::size_t>(bucket_moo::packed_size(bound));
  const std::size_t pitch = size + 2;
  std::vector<double> messages(pitch * static_cast<std::size_t>(world));
  std::vector<double> packed(size);
  for (std::vector<double>* const values : {&messages, &packed}) {
    for (double& value : *values) value = normal(random);
  }
  bucket_moo::cuda::GramianParts parts;
  parts.packed = with_packed ? packed.data() : nullptr;
  parts.messages = reinterpret_cast<const std::byte*>(messages.data());
  parts.pitch = static_cast<std::int64_t>(pitch * sizeof(double));
  parts.world = world;
  StepHeader header;
  std::vector<double> sum(size, -7.0);
  CHECK(bucket_moo::cuda::launch_sum_gramians(&header, parts, bound, sum.data(), nullptr) == cudaSuccess);
  CHECK(sum == std::vector<double>(size, -7.0));  // a step with an error
  header.k = k;
  CHECK(bucket_moo::cuda::launch_sum_gramians(&header, parts, bound, sum.data(), nullptr) == cudaSuccess);
  for (std::size_t entry = 0; entry < size; ++entry) {
    double expected = with_packed ? packed[entry] : 0.0;
    for (int r = 0; r < world; ++r) expected += messages[static_cast<std::size_t>(r) * pitch + entry];
    const bool counts = static_cast<int>(entry) < bucket_moo::packed_size(k);
    CHECK(sum[entry] == (counts ? expected : -7.0));  // the same bits: the order is that of the parts
  }
}

void arguments_out_of_range_are_refused() {
  checks::context = "arguments";
  StepHeader header;
  double packed = 0.0;
  bucket_moo::cuda::GramianParts parts;
  for (const int k : {0, bucket_moo::kMaxObjectives + 1}) {
    CHECK(bucket_moo::cuda::launch_sum_gramians(&header, parts, k, &packed, nullptr) == cudaErrorInvalidValue);
  }
  parts.tail.size = 1;
  CHECK(bucket_moo::cuda::launch_sum_gramians(&header, parts, 1, &packed, nullptr) == cudaErrorInvalidValue);
  CHECK(bucket_moo::cuda::launch_group_records(nullptr, {nullptr, 2, 2}, 2, false, {}, {}, nullptr) ==
        cudaErrorInvalidValue);
}

}  // namespace

int main() {
  emulation::collect_faults(true);
  unsigned seed = 1;
  for (const int across : {1, 2, 5, 40}) {
    for (const int inside : {1, 2, 3, 33}) groups_weigh_what_their_ranks_do(across, inside, seed++);
  }
  what_is_wrong_with_a_rank_is_found();
  for (const int k : {1, 2, 16, 64}) {
    for (const int world : {0, 1, 3}) {
      for (const bool with_packed : {false, true}) gramians_add_up(k, world, with_packed, seed++);
    }
  }
  arguments_out_of_range_are_refused();
  CHECK(emulation::take_faults().empty());
  return checks::finish();
}
