// Ranks that share objectives in a regular way: what the records of all ranks say of groups of them.
#ifndef BUCKET_MOO_RANK_GROUPS_HPP
#define BUCKET_MOO_RANK_GROUPS_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/objective_table.hpp>

namespace bucket_moo {

/// The W = across * inside ranks of a group as a grid. Those of a row are an inside group: they share an objective.
struct RankRows {
  const int* ranks = nullptr;  ///< [across, inside]
  int across = 0;
  int inside = 0;
};

/// What the records of a pass come to where every inside group counts as one rank.
struct GroupRecords {
  StepRecord*
      group;  ///< [across] that of its first rank, with the mean of its ranks' weights, and of what these were told
  StepRecord* member;  ///< [inside] those of this rank's inside group
  StepHeader* found;   ///< what is wrong with the records, its `culprit` a rank; else without an error. K is 0
};

/// Makes them from the records of all ranks, by rank. Whatever is wrong, all is written.
/// \param own            this rank's row
/// \param one_objective  all ranks must have the same objective
template <class Lanes>
BUCKET_MOO_HD void group_records(Lanes lanes, const StepRecord* records, const RankRows& rows, int own,
                                 bool one_objective, const GroupRecords& out) {
  StepHeader found;
  found.step = records[0].step;
  const int world = rows.across * rows.inside;
  check_records(records, world, &found);
  BUCKET_MOO_UNROLL(1)
  for (int r = 1; r < world && one_objective; ++r) {
    if (!same_name(records[0].objective, records[r].objective)) set_error(StepError::several_objectives, r, &found);
  }
  BUCKET_MOO_UNROLL(1)
  for (int r = 0; r < world; ++r) {
    if (records[r].told > 0 && records[r].total < 0.0) set_error(StepError::untold_objective, r, &found);
  }
  BUCKET_MOO_UNROLL(1)
  for (int a = 0; a < rows.across; ++a) {
    const int* const group = rows.ranks + a * rows.inside;
    BUCKET_MOO_UNROLL(1)
    for (int i = 1; i < rows.inside; ++i) {
      if (!same_name(records[group[0]].objective, records[group[i]].objective)) {
        set_error(StepError::several_inside, group[i], &found);
      }
    }
  }
  BUCKET_MOO_UNROLL(1)
  for (int a = lanes.lane(); a < rows.across; a += lanes.count()) {
    const int* const group = rows.ranks + a * rows.inside;
    double weight = 0.0;  // a mean has no overflow; only ratios count
    BUCKET_MOO_UNROLL(1)
    for (int i = 0; i < rows.inside; ++i) weight += records[group[i]].weight / rows.inside;
    out.group[a] = records[group[0]];
    out.group[a].weight = weight;
    out.group[a].total /= rows.inside;
  }
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < rows.inside; i += lanes.count()) {
    out.member[i] = records[rows.ranks[own * rows.inside + i]];
  }
  if (lanes.lane() == 0) *out.found = found;
  lanes.sync();
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_RANK_GROUPS_HPP
