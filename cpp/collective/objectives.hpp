// Which rank stands for which objective in a step, as all ranks agreed.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "bucket_moo/objective_table.hpp"
#include "collective/transport.hpp"
#include "kernels/rows.hpp"

namespace bucket_moo {

/// Objectives of a step, numbered by the lowest rank that has them.
struct Objectives {
  std::vector<std::string> names;  ///< [K]
  std::vector<int> objective;      ///< [W] objective of each rank
  std::vector<double> share;       ///< [W] weight of each rank over the sum of weights in its objective; 0: left out

  int k() const { return static_cast<int>(names.size()); }
  ObjectiveMap map() const { return {objective.data(), share.data(), k()}; }
};

/// `name` as ranks exchange it; at most kMaxObjectiveName bytes.
ObjectiveName make_objective_name(const std::string& name);

/// The records of all ranks, in rank order, of which this one has its own. `transport` may be null: a single rank.
/// Raises ValueError, on this rank alone, if another has sent something else than a record.
std::vector<StepRecord> gather_records(Transport* transport, const StepRecord& own);

/// Reads off the records of all W ranks, in rank order, who stands for what.
/// Raises AgreedError if the ranks do not make the same call or name more than kMaxObjectives
/// objectives.
Objectives read_objectives(std::span<const StepRecord> records);

/// Raises AgreedError if two of the ranks stand for different objectives.
void check_one_objective(std::span<const StepRecord> records);

/// Raises the AgreedError of a step's header, if it has an error. `records`: of the step, or empty if they are not
/// known; `limit`: the largest K that was allowed.
void check_step(const StepHeader& header, std::span<const StepRecord> records, int limit);

}  // namespace bucket_moo
