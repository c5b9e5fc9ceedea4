// Where ranks share objectives in a regular way: those of a group as a grid.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace bucket_moo {

/// The ranks of a group, each once. Ranks [a, .] share an objective and are one *inside* group; ranks [., i] may differ
/// in it and are one *across* group.
struct RankGrid {
  std::vector<int> ranks;  ///< [across, inside] row-major; empty: there is no grid
  int inside = 1;          ///< ranks that share an objective

  /// Whether there are ranks that share an objective.
  bool has_levels() const { return inside > 1; }
  int across() const { return static_cast<int>(ranks.size()) / inside; }
  int at(int a, int i) const { return ranks[static_cast<std::size_t>(a * inside + i)]; }

  // Where a rank of the group is.
  int across_of(int rank) const { return index_of(rank) / inside; }
  int inside_of(int rank) const { return index_of(rank) % inside; }

  /// The inside group of a rank, and its across group, in order.
  std::vector<int> inside_group(int rank) const {
    std::vector<int> group;
    for (int i = 0; i < inside; ++i) group.push_back(at(across_of(rank), i));
    return group;
  }
  std::vector<int> across_group(int rank) const {
    std::vector<int> group;
    for (int a = 0; a < across(); ++a) group.push_back(at(a, inside_of(rank)));
    return group;
  }

 private:
  int index_of(int rank) const { return static_cast<int>(std::find(ranks.begin(), ranks.end(), rank) - ranks.begin()); }
};

}  // namespace bucket_moo
