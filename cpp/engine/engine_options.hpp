// What all ranks of a group give alike.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "c10d_collective/grid_groups.hpp"
#include "collective/configuration.hpp"
#include "collective/rank_grid.hpp"
#include "collective/sketch_options.hpp"
#include "engine/grouping.hpp"
#include "engine/weight_schedule.hpp"
#include "methods/method_config.hpp"

namespace bucket_moo {

/// How objectives are laid out over ranks and passes.
enum class Layout {
  ranks,   ///< a pass may have other objectives on other ranks
  passes,  ///< a pass has one objective on all ranks
};

struct EngineOptions {
  MethodConfig method;
  std::uint64_t seed = 0;
  SketchOptions sketch;
  SolveSchedule schedule;
  Layout layout = Layout::ranks;
  bool takes_row_norms = false;  ///< for reports; supported on the host
  Grouping grouping;             ///< with parts: supported on the host, with the exact Gramian
  RankGrid grid;                 ///< of all ranks of the group, or none; supported with the exact Gramian
  GridGroups grid_groups;        ///< of this rank, where the grid has levels and a device reduces; else none
  Configuration configuration;   ///< compared across ranks at the first reduction

  /// Whether there are weights that outlive their step.
  bool keeps_weights() const { return sketch.enabled() && schedule.keeps_weights(); }

  /// Raises AgreedError if the method's options are for another number of objectives than K, on which ranks agreed.
  void check_objectives(int k) const;

  /// The same for objectives of these names.
  void check_objectives(std::span<const std::string> names) const;
};

}  // namespace bucket_moo
