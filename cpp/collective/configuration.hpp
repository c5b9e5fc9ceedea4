// Comparison of a state's configuration across ranks.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "collective/all_gather.hpp"

namespace bucket_moo {

/// Fields that must be the same on every rank: name and printed value.
using Configuration = std::vector<std::pair<std::string, std::string>>;

/// Raises AgreedError, naming the field, the values and the ranks, unless all `world` ranks hold the same
/// configuration. Collective: two all-gathers of host memory.
void check_same_configuration(int rank, int world, const AllGather& all_gather, const Configuration& configuration);

}  // namespace bucket_moo
