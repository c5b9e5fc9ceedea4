// The records of a pass on a grid of ranks, as the host reads them.
#pragma once

#include <span>
#include <vector>

#include "bucket_moo/objective_table.hpp"
#include "collective/rank_grid.hpp"

namespace bucket_moo {

/// See group_records(), which makes them.
struct GroupedRecords {
  std::vector<StepRecord> groups;   ///< [across] a record for every inside group, as if it were one rank
  std::vector<StepRecord> members;  ///< [inside] those of this rank's inside group
};

/// From the records of all ranks of the grid. `rank`: this one. Raises AgreedError, alike on all of them, if ranks of
/// any inside group stand for different objectives, or do not make the same call.
GroupedRecords grouped_records(std::span<const StepRecord> records, const RankGrid& grid, int rank);

}  // namespace bucket_moo
