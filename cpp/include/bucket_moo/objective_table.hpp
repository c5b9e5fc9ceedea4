// Which rank stands for which objective in a step: what ranks tell each other, and what each makes of it.
#ifndef BUCKET_MOO_OBJECTIVE_TABLE_HPP
#define BUCKET_MOO_OBJECTIVE_TABLE_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/limits.hpp>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace bucket_moo {

/// Longest objective name in bytes of UTF-8; the records that ranks exchange have a fixed size.
inline constexpr std::size_t kMaxObjectiveName = 63;

/// A rank whose weight is this much smaller than the largest of its objective is left out, like one of weight 0.
inline constexpr double kSmallestShare = 0x1p-100;

/// An objective's name, padded with zero bytes.
struct ObjectiveName {
  std::uint64_t words[(kMaxObjectiveName + 1) / sizeof(std::uint64_t)] = {};

  BUCKET_MOO_HD char* text() { return reinterpret_cast<char*>(words); }
  BUCKET_MOO_HD const char* text() const { return reinterpret_cast<const char*>(words); }
};

BUCKET_MOO_HD inline bool same_name(const ObjectiveName& a, const ObjectiveName& b) {
  for (std::size_t i = 0; i < sizeof(a.words) / sizeof(a.words[0]); ++i) {
    if (a.words[i] != b.words[i]) return false;
  }
  return true;
}

/// The kind of call that a rank makes. `invalid`: its arguments were refused; it only tells the others so.
/// `end_of_pass`: it has no more buckets. `reduce_scatter_inside`: among the ranks that share an objective on a grid,
/// so that ranks across it have the same shard.
enum class Operation : std::int32_t {
  ddp_bucket,
  all_reduce,
  reduce_scatter,
  invalid,
  end_of_pass,
  reduce_scatter_inside,
};

/// What a rank tells the others at the start of a pass. Sent as raw bytes, so every rank must run the same build.
struct StepRecord {
  ObjectiveName objective;
  double weight = 1.0;           ///< weight of this rank inside its objective, >= 0
  std::int64_t step = 0;         ///< counted by the state
  std::int64_t numel = 0;        ///< elements of the pass's first bucket
  std::int32_t dtype = 0;        ///< DType of the pass's first bucket
  std::int32_t operation = 0;    ///< Operation of the pass's first bucket
  std::uint64_t bucket = 0;      ///< of what a direct call's bucket is called; 0 for DDP's
  std::int32_t pass = 0;         ///< of its step, from 0
  std::int32_t leaves_open = 0;  ///< whether the step goes on with another pass
  double total = 0.0;            ///< what its objective's weights were told to add up to; below 0: it has none
  std::int32_t told = 0;         ///< objectives whose totals were told; 0: none were
};
static_assert(std::is_trivially_copyable_v<StepRecord> && sizeof(StepRecord) == 128);

BUCKET_MOO_HD inline bool same_call(const StepRecord& a, const StepRecord& b) {
  return a.step == b.step && a.numel == b.numel && a.dtype == b.dtype && a.operation == b.operation &&
         a.bucket == b.bucket && a.pass == b.pass && a.leaves_open == b.leaves_open;
}

/// What is wrong with a step, alike on every rank.
enum class StepError : std::int32_t {
  none,
  invalid_call,         ///< `culprit` refused its arguments
  other_call,           ///< `culprit` makes another call than rank 0
  too_many_objectives,  ///< `culprit` of them
  more_objectives,      ///< `culprit` of them in a step of several passes, more than there is room for
  objective_count,      ///< `culprit` of them, and the method's options are for another number
  too_many_names,       ///< the registry of names is full
  other_objectives,     ///< `culprit` of them, and not those of the first step
  several_objectives,   ///< `culprit` has another objective than rank 0 in a pass that must have one
  several_inside,       ///< `culprit` has another objective than the first rank of its inside group
  untold_objective,     ///< `culprit` has an objective that has no total
  other_total,          ///< the rows of the objective of number `culprit` do not add up to its total
  no_rows,              ///< `culprit` objectives have a total and no row
  other_piece,          ///< place `culprit` of the ranks with other pieces of the model says something else
};

/// The scalars of a step.
struct StepHeader {
  std::int32_t k = 0;           ///< objectives
  std::int32_t one_to_one = 0;  ///< whether objective k is rank k alone, with share 1, for every k
  StepError error = StepError::none;
  std::int32_t culprit = 0;  ///< the rank or number that `error` is about
  std::int64_t step = 0;     ///< that of the records
};

/// The objectives of a step, numbered by the lowest rank that has them, in memory of the caller's.
struct ObjectiveTable {
  StepHeader* header;
  int* leader;     ///< [W], of which the first K count: the lowest rank of each objective
  int* objective;  ///< [W] objective of each rank
  double* share;   ///< [W] weight of each rank over the sum of weights in its objective; 0: left out
  int* begin;      ///< [W + 1], of which the first K + 1 count: objective k's ranks are member[begin[k]..begin[k + 1])
  int* member;     ///< [W] ranks that are not left out, by objective, then by rank
};

/// Numbers that names keep for good, in the order in which they first came up: for what is kept from step to step.
struct ObjectiveRegistry {
  ObjectiveName* names;  ///< [capacity]
  int* count;            ///< names so far
  int* slot;             ///< [W], of which the first K count: the number of each objective of the step
  int capacity;
};

/// The objectives of the first step, for steps that must not have others.
struct FirstObjectives {
  ObjectiveName* names;  ///< as many as StepLimits allows
  int* count;            ///< 0: there was no step yet
};

/// What a step is held to.
struct StepLimits {
  int objectives = kMaxObjectives;  ///< largest K
  int expected = 0;                 ///< the K that the method's options are for; 0: any
};

/// An error that was there before stays.
BUCKET_MOO_HD inline void set_error(StepError error, int culprit, StepHeader* header) {
  if (header->error != StepError::none) return;
  header->error = error;
  header->culprit = culprit;
}

/// Looks for ranks that refused their arguments or make other calls.
BUCKET_MOO_HD inline void check_records(const StepRecord* records, int world, StepHeader* header) {
  for (int r = 0; r < world; ++r) {
    if (records[r].operation == static_cast<std::int32_t>(Operation::invalid)) {
      set_error(StepError::invalid_call, r, header);
    }
  }
  for (int r = 1; r < world; ++r) {
    if (!same_call(records[0], records[r])) set_error(StepError::other_call, r, header);
  }
}

/// Makes the table of a step from the records of all W >= 1 ranks. On an error K is 0 and of the table only the header
/// and scratch are written. All lanes call alike; the table is visible to all of them on return.
/// \param found  an error in what the records were made of; nullptr: there is none
template <class Lanes>
BUCKET_MOO_HD void make_objective_table(Lanes lanes, const StepRecord* records, int world, StepLimits limits,
                                        const ObjectiveTable& table, const StepHeader* found = nullptr) {
  StepHeader header;
  header.step = records[0].step;
  if (found != nullptr) set_error(found->error, found->culprit, &header);
  check_records(records, world, &header);

  // `objective` first holds each rank's leader: the lowest rank of the same name.
  for (int r = lanes.lane(); r < world; r += lanes.count()) {
    int first = 0;
    while (!same_name(records[first].objective, records[r].objective)) ++first;
    table.objective[r] = first;
  }
  lanes.sync();
  int k = 0;  // counted alike by all lanes
  for (int r = 0; r < world; ++r) {
    if (table.objective[r] != r) continue;
    if (lanes.lane() == 0) table.leader[k] = r;
    ++k;
  }
  lanes.sync();
  if (k > limits.objectives) set_error(StepError::too_many_objectives, k, &header);
  if (limits.expected > 0 && k != limits.expected) set_error(StepError::objective_count, k, &header);
  if (header.error != StepError::none) {
    if (lanes.lane() == 0) *table.header = header;
    lanes.sync();
    return;
  }

  header.k = k;
  for (int r = lanes.lane(); r < world; r += lanes.count()) {
    int number = 0;
    while (table.leader[number] != table.objective[r]) ++number;
    table.objective[r] = number;
  }
  lanes.sync();
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    double largest = 0.0;  // dividing by it first keeps sums from overflowing
    for (int r = 0; r < world; ++r) {
      if (table.objective[r] == i && records[r].weight > largest) largest = records[r].weight;
    }
    double total = 0.0;
    int members = 0;
    for (int r = 0; r < world; ++r) {
      if (table.objective[r] != i) continue;
      const double relative = largest > 0.0 ? records[r].weight / largest : 0.0;
      // The kernels multiply in float32: a share below its range is none.
      const bool in = relative >= kSmallestShare;
      table.share[r] = in ? relative : 0.0;
      total += table.share[r];
      members += in ? 1 : 0;
    }
    for (int r = 0; r < world; ++r) {
      if (table.objective[r] == i && table.share[r] > 0.0) table.share[r] /= total;
    }
    table.begin[i + 1] = members;
  }
  lanes.sync();
  if (lanes.lane() == 0) {
    table.begin[0] = 0;
    for (int i = 0; i < k; ++i) table.begin[i + 1] += table.begin[i];
  }
  lanes.sync();
  double alone = 1.0;
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    int next = table.begin[i];
    for (int r = 0; r < world; ++r) {
      if (table.objective[r] == i && table.share[r] > 0.0) table.member[next++] = r;
    }
    if (table.begin[i + 1] - table.begin[i] != 1) alone = 0.0;
  }
  header.one_to_one = k == world && lanes.min(alone) == 1.0 ? 1 : 0;
  if (lanes.lane() == 0) *table.header = header;
  lanes.sync();
}

/// Finds the objectives of a step in the registry, which takes in those it lacks. To be called after
/// make_objective_table(), alike by all lanes; does nothing where that found an error.
template <class Lanes>
BUCKET_MOO_HD void assign_slots(Lanes lanes, const StepRecord* records, const ObjectiveTable& table,
                                const ObjectiveRegistry& registry) {
  const int k = table.header->k;
  const int known = *registry.count;
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    int slot = 0;
    while (slot < known && !same_name(registry.names[slot], records[table.leader[i]].objective)) ++slot;
    registry.slot[i] = slot;
  }
  lanes.sync();
  if (lanes.lane() == 0) {
    int count = known;
    for (int i = 0; i < k; ++i) {
      if (registry.slot[i] < known) continue;
      if (count < registry.capacity) registry.names[count] = records[table.leader[i]].objective;
      registry.slot[i] = count++;
    }
    if (count > registry.capacity) {
      table.header->error = StepError::too_many_names;
      table.header->culprit = count;
      table.header->k = 0;
    } else {
      *registry.count = count;
    }
  }
  lanes.sync();
}

/// Takes in the objectives of the first step, and finds an error in every later one that has others. To be called as
/// assign_slots().
template <class Lanes>
BUCKET_MOO_HD void require_same_objectives(Lanes lanes, const StepRecord* records, const ObjectiveTable& table,
                                           const FirstObjectives& first) {
  const int k = table.header->k;
  const int known = *first.count;
  if (k == 0) return;
  double same = known == 0 || known == k ? 1.0 : 0.0;
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    const ObjectiveName& name = records[table.leader[i]].objective;
    if (known == 0) {
      first.names[i] = name;
    } else if (known == k && !same_name(first.names[i], name)) {
      same = 0.0;
    }
  }
  same = lanes.min(same);
  lanes.sync();  // all have read what lane 0 writes now
  if (lanes.lane() == 0) {
    if (same == 1.0) {
      *first.count = k;
    } else {
      table.header->error = StepError::other_objectives;
      table.header->culprit = k;
      table.header->k = 0;
    }
  }
  lanes.sync();
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_OBJECTIVE_TABLE_HPP
