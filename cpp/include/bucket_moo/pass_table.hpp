// Which objective each row of a step of several passes stands for, and what rows count.
#ifndef BUCKET_MOO_PASS_TABLE_HPP
#define BUCKET_MOO_PASS_TABLE_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/objective_table.hpp>
#include <cstdint>

namespace bucket_moo {

/// A weight so many times larger than its objective's unit becomes the unit.
inline constexpr double kNewUnit = 0x1p40;

/// How far weights may add up to something else than was told, relative: the rounding of who adds them up.
inline constexpr double kTotalTolerance = 1e-9;

/// Whether weights add up to their total.
BUCKET_MOO_HD inline bool adds_up(double weight, double total) {
  const double difference = weight > total ? weight - total : total - weight;
  return difference <= kTotalTolerance * total;
}

/// The objectives of a step, numbered in the order in which they come up: by pass, then by rank. An objective's
/// gradient is the mean of its rows over ranks and passes, weighted. How often passes came and with which weights is
/// known at the end alone, so rows are added up first, in a unit of each objective's own: the first weight that came,
/// or one that is much larger. Sums of weights and of rows then neither overflow nor vanish, whatever weights are
/// counted in.
struct StepSums {
  StepHeader* header;  ///< K so far; an error stays until the next step. one_to_one does not count
  StepRecord* record;  ///< [capacity], of which the first K count: one that has the objective
  double* unit;        ///< [capacity] weights are multiples of these; 0: none but left out so far
  double* total;       ///< [capacity] sum of weights, in that unit
  std::int32_t* rows;  ///< [capacity] rows so far, those left out among them
  /// [capacity] what weights are to add up to, of steps that are told; nullptr: nothing is compared with it.
  double* told = nullptr;
};

/// The rows of one pass: one of every rank.
struct PassTable {
  int* objective;       ///< [W] the number of each rank's objective
  double* coefficient;  ///< [W] each rank's weight, in the unit of its objective; 0: left out
  double* unit;         ///< [capacity] that unit, of which the first K count
};

/// What a pass is held to.
struct PassRules {
  StepLimits limits;           ///< `objectives`: also the capacity; `expected` counts in the last pass alone
  bool one_objective = false;  ///< all ranks must have the same objective
  /// Every step must have the objectives of the first one, and numbers them alike. Null pointers: it may have others.
  FirstObjectives first = {};
};

/// Begins a step with the objectives of the first one, if there was one. Returns how many these are.
template <class Lanes>
BUCKET_MOO_HD int number_as_first(Lanes lanes, const FirstObjectives& first, const StepSums& sums) {
  const int known = first.names == nullptr ? 0 : *first.count;
  for (int i = lanes.lane(); i < known; i += lanes.count()) {
    sums.record[i].objective = first.names[i];
    sums.unit[i] = 0.0;
    sums.total[i] = 0.0;
    sums.rows[i] = 0;
  }
  return known;
}

/// Where a step of K objectives is complete: finds an error if these are not the first step's, or if rows do not add up
/// to what was told. Else takes them for the first, if there was none. All lanes call alike.
template <class Lanes>
BUCKET_MOO_HD void close_passes(Lanes lanes, const StepRecord& record, int k, const FirstObjectives& first,
                                const StepSums& sums) {
  const bool are_told = sums.told != nullptr && record.told > 0;
  const int known = first.names == nullptr ? 0 : *first.count;
  double missing = k;  // the lowest number of an objective without a row, and of one that is not as told
  double wrong = k;
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    const bool is_other = known > 0 && (i >= known || !same_name(first.names[i], sums.record[i].objective));
    if ((sums.rows[i] == 0 || is_other) && i < missing) missing = i;
    if (are_told && sums.rows[i] > 0 && !adds_up(sums.unit[i] * sums.total[i], sums.told[i]) && i < wrong) wrong = i;
    if (first.names != nullptr && known == 0) first.names[i] = sums.record[i].objective;
  }
  missing = lanes.min(missing);
  wrong = lanes.min(wrong);
  lanes.sync();  // all have read the count, which lane 0 writes now
  if (lanes.lane() != 0) return;
  StepHeader header = *sums.header;
  if (are_told && record.told > k) set_error(StepError::no_rows, record.told - k, &header);
  if (wrong < k) set_error(StepError::other_total, static_cast<int>(wrong) + 1, &header);
  if (missing < k) set_error(StepError::other_objectives, k, &header);
  if (header.error != StepError::none) {
    header.k = 0;
    *sums.header = header;
  } else if (first.names != nullptr) {
    *first.count = k;
  }
}

/// Adds the pass that the records of all W >= 1 ranks are of. On an error nothing but `objective`, the header and what
/// was known of the step is written, with a K of 0. All lanes call alike. Needs a sync() before others than lane 0 read
/// the header, and any lane what else was written.
/// \param found  an error in what the records were made of; nullptr: there is none
template <class Lanes>
BUCKET_MOO_HD void add_pass(Lanes lanes, const StepRecord* records, int world, const PassRules& rules,
                            const StepSums& sums, const PassTable& pass, const StepHeader* found = nullptr) {
  StepHeader header;
  if (records[0].pass > 0) header = *sums.header;
  if (header.error != StepError::none) return;
  header.step = records[0].step;
  if (found != nullptr) set_error(found->error, found->culprit, &header);
  if (records[0].pass == 0) {
    header.k = number_as_first(lanes, rules.first, sums);
    lanes.sync();
  }
  const int known = header.k;
  check_records(records, world, &header);
  for (int r = 0; r < world; ++r) {
    if (rules.one_objective && !same_name(records[0].objective, records[r].objective)) {
      set_error(StepError::several_objectives, r, &header);
    }
    if (sums.told != nullptr && records[r].told > 0 && records[r].total < 0.0) {
      set_error(StepError::untold_objective, r, &header);
    }
  }

  // First a known objective's number, or `known` and the lowest rank of the same name.
  for (int r = lanes.lane(); r < world; r += lanes.count()) {
    int k = 0;
    while (k < known && !same_name(sums.record[k].objective, records[r].objective)) ++k;
    int first = 0;
    if (k == known) {
      while (!same_name(records[first].objective, records[r].objective)) ++first;
    }
    pass.objective[r] = k + first;
  }
  lanes.sync();
  int k = known;  // counted alike by all lanes
  for (int r = 0; r < world; ++r) {
    if (pass.objective[r] != known + r) continue;
    if (lanes.lane() == 0 && k < rules.limits.objectives) {
      sums.record[k] = records[r];
      sums.unit[k] = 0.0;
      sums.total[k] = 0.0;
      sums.rows[k] = 0;
    }
    ++k;
  }
  if (rules.first.names != nullptr && *rules.first.count > 0 && k != *rules.first.count) {
    set_error(StepError::other_objectives, k, &header);
  }
  if (k > rules.limits.objectives) {
    set_error(k > kMaxObjectives ? StepError::too_many_objectives : StepError::more_objectives, k, &header);
  }
  if (rules.limits.expected > 0 && records[0].leaves_open == 0 && k != rules.limits.expected) {
    set_error(StepError::objective_count, k, &header);
  }
  header.k = header.error == StepError::none ? k : 0;
  header.one_to_one = 0;
  if (lanes.lane() == 0) *sums.header = header;
  lanes.sync();
  if (header.error != StepError::none) return;

  for (int r = lanes.lane(); r < world; r += lanes.count()) {
    if (pass.objective[r] < known) continue;
    int number = known;
    while (!same_name(sums.record[number].objective, records[r].objective)) ++number;
    pass.objective[r] = number;
  }
  lanes.sync();
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    double unit = sums.unit[i];
    double total = sums.total[i];
    std::int32_t rows = sums.rows[i];
    for (int r = 0; r < world; ++r) {
      if (pass.objective[r] != i) continue;
      ++rows;
      if (sums.told != nullptr) sums.told[i] = records[r].total;
      const double weight = records[r].weight;
      if (weight > 0.0 && (unit == 0.0 || weight > kNewUnit * unit)) {
        total *= unit / weight;
        unit = weight;
      }
    }
    for (int r = 0; r < world; ++r) {
      if (pass.objective[r] != i) continue;
      const double weight = unit > 0.0 ? records[r].weight / unit : 0.0;
      // The kernels multiply in float32: a weight below its range is none.
      pass.coefficient[r] = weight >= kSmallestShare ? weight : 0.0;
      total += pass.coefficient[r];
    }
    sums.unit[i] = unit;
    sums.total[i] = total;
    sums.rows[i] = rows;
    pass.unit[i] = unit;
  }
  if (records[0].leaves_open == 0) close_passes(lanes, records[0], k, rules.first, sums);
}

/// Before the rows of a pass are added to a bucket's sums: what those are multiplied by, so that they are in the pass's
/// units.
/// \param unit   [capacity] of the bucket's sums, in and out; 0: nothing was added yet
/// \param decay  [capacity] out: 0 for a sum that does not count yet, whose memory may hold an earlier step's; else 1
///               for one that has no row in this pass. Like `unit` it needs a sync() before it is read
template <class Lanes>
BUCKET_MOO_HD void begin_addition(Lanes lanes, int k, int world, const PassTable& pass, double* unit, double* decay) {
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    bool any = false;
    for (int r = 0; r < world; ++r) any = any || (pass.objective[r] == i && pass.coefficient[r] > 0.0);
    const double ratio = any ? unit[i] / pass.unit[i] : unit[i] > 0.0 ? 1.0 : 0.0;
    decay[i] = ratio >= kSmallestShare ? ratio : 0.0;
    if (any) unit[i] = pass.unit[i];
  }
}

/// What a rank's row counts for in the mean of a pass of one objective, and the weight of that mean in the objective's
/// unit: for ranks that add their rows up before these are added to sums.
struct PassShare {
  double of_rank = 0.0;  ///< 0: left out
  double weight = 0.0;
};

BUCKET_MOO_HD inline PassShare share_of(const PassTable& pass, int world, int rank) {
  PassShare share;
  for (int r = 0; r < world; ++r) share.weight += pass.coefficient[r];
  if (share.weight > 0.0) share.of_rank = pass.coefficient[rank] / share.weight;
  return share;
}

/// What turns a sum in `unit` into the mean of its rows, whose weights add up to `total` units of `total_unit`; 0 if
/// there is none.
BUCKET_MOO_HD inline double mean_share(double unit, double total_unit, double total) {
  const double share = total > 0.0 ? unit / total_unit / total : 0.0;
  return share >= kSmallestShare ? share : 0.0;
}

/// The table of a bucket whose sums are its rows: row k is objective k, with the share that turns its sum into a mean.
/// \param unit      [capacity] of the bucket's sums
/// \param capacity  rows
template <class Lanes>
BUCKET_MOO_HD void make_sums_table(Lanes lanes, const StepSums& sums, const double* unit, int capacity,
                                   const ObjectiveTable& table) {
  const int k = sums.header->k;
  for (int i = lanes.lane(); i < capacity; i += lanes.count()) {
    table.leader[i] = i;
    table.objective[i] = i < k ? i : 0;
    table.share[i] = i < k && unit[i] > 0.0 ? mean_share(unit[i], sums.unit[i], sums.total[i]) : 0.0;
  }
  lanes.sync();
  if (lanes.lane() == 0) {
    *table.header = *sums.header;
    int members = 0;
    table.begin[0] = 0;
    for (int i = 0; i < k; ++i) {
      if (table.share[i] > 0.0) table.member[members++] = i;
      table.begin[i + 1] = members;
    }
  }
  lanes.sync();
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_PASS_TABLE_HPP
