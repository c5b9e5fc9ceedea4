// Comparison of a state's configuration across ranks.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "collective/host_all_gather.hpp"

namespace bucket_moo {

/// Fields that must be the same on every rank: name and printed value.
using Configuration = std::vector<std::pair<std::string, std::string>>;

/// The field that ranks of one model differ in: which piece of it they hold.
inline constexpr const char* kPlaceOfPiece = "place in model_parallel_group";

/// The fields that ranks of one model have alike.
Configuration of_whole_model(Configuration configuration);

/// Raises AgreedError, naming the field, the values and the ranks, unless all `world` ranks hold the same
/// configuration; ValueError, on this rank alone, if another has sent something else than a configuration. Collective:
/// two all-gathers of host memory.
void check_same_configuration(int rank, int world, const HostAllGather& all_gather, const Configuration& configuration);

}  // namespace bucket_moo
