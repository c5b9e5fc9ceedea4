// Comparison of a state's configuration across ranks.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace bucket_moo {

/// Fields that must be the same on every rank: name and printed value.
using Configuration = std::vector<std::pair<std::string, std::string>>;

/// Fills block r of `blocks`, of `bytes` bytes each, with rank r's, of which the own one is there.
using AllGather = std::function<void(std::byte* blocks, std::size_t bytes)>;

/// Raises AgreedError, naming the field, the values and the ranks, unless all `world` ranks hold the same
/// configuration. Collective: two all-gathers.
void check_same_configuration(int rank, int world, const AllGather& all_gather, const Configuration& configuration);

}  // namespace bucket_moo
