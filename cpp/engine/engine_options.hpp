// What all ranks of a group give alike.
#pragma once

#include <cstdint>

#include "collective/configuration.hpp"
#include "collective/sketch_options.hpp"
#include "engine/weight_schedule.hpp"
#include "torch_types/method_config.hpp"

namespace bucket_moo {

struct EngineOptions {
  MethodConfig method;
  std::uint64_t seed = 0;
  SketchOptions sketch;
  SolveSchedule schedule;
  Configuration configuration;  ///< compared across ranks at the first reduction

  /// Whether there are weights that outlive their step.
  bool keeps_weights() const { return sketch.enabled() && schedule.keeps_weights(); }

  /// Raises AgreedError if the method's options are for another number of objectives than K, on which ranks agreed.
  void check_objectives(int k) const;
};

}  // namespace bucket_moo
