// Comparison of a state's configuration across ranks.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "collective/transport.hpp"

namespace bucket_moo {

/// Fields that must be the same on every rank: name and printed value.
using Configuration = std::vector<std::pair<std::string, std::string>>;

/// Raises ValueError on every rank, naming the field, the values and the ranks, unless all ranks hold the same
/// configuration. Collective: two all-gathers.
void check_same_configuration(Transport& transport, const Configuration& configuration);

}  // namespace bucket_moo
