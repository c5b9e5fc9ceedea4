#include "collective/grouped_records.hpp"

#include "bucket_moo/lanes.hpp"
#include "bucket_moo/limits.hpp"
#include "bucket_moo/rank_groups.hpp"
#include "collective/agreed_error.hpp"
#include "collective/objectives.hpp"
#include "methods/message.hpp"

namespace bucket_moo {

GroupedRecords grouped_records(std::span<const StepRecord> records, const RankGrid& grid, int rank) {
  GroupedRecords grouped{std::vector<StepRecord>(static_cast<std::size_t>(grid.across())),
                         std::vector<StepRecord>(static_cast<std::size_t>(grid.inside))};
  StepHeader found;
  group_records(HostLanes{}, records.data(), {grid.ranks.data(), grid.across(), grid.inside}, grid.across_of(rank),
                /*one_objective=*/false, {grouped.groups.data(), grouped.members.data(), &found});
  if (found.error == StepError::several_inside) {
    const int first = grid.at(grid.across_of(found.culprit), 0);
    const StepRecord& expected = records[static_cast<std::size_t>(first)];
    const StepRecord& other = records[static_cast<std::size_t>(found.culprit)];
    throw AgreedError(
        message("bucket_moo_ext: ranks along the dimensions of the mesh that `objectives` does not name must have the ",
                "same objective in a pass; in step ", other.step, ", pass ", other.pass + 1, " rank ", first, " has '",
                expected.objective.text(), "', rank ", found.culprit, " '", other.objective.text(), "'"));
  }
  check_step(found, records, kMaxObjectives);
  return grouped;
}

}  // namespace bucket_moo
