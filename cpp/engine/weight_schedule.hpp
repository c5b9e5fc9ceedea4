// Which weights a step uses where those of a sketch serve for more than the step they were solved in.
#pragma once

#include <cstdint>
#include <optional>

namespace bucket_moo {

/// When buckets with a sketch are solved for. The others are in every step.
struct SolveSchedule {
  std::int64_t refresh_every = 1;  ///< a bucket's weights serve for so many steps
  bool lag = false;                ///< a step uses the weights that the one before it solved for

  /// Whether weights outlive their step.
  bool keeps_weights() const { return refresh_every > 1 || lag; }
};

struct WeightPlan {
  bool uses_kept;  ///< the weights that are kept; else those that this step solves for
  bool solves;     ///< with weights that are kept: for later steps
};

/// What a step does for a bucket. `solved`: the step whose gradients the weights that are kept for the bucket are from,
/// if there are any that fit this step's objectives. New ones are due in every period of refresh_every steps, counted
/// from step 1.
inline WeightPlan plan_weights(const SolveSchedule& schedule, std::int64_t step, std::optional<std::int64_t> solved) {
  const auto period = [&](std::int64_t of) { return (of - 1) / schedule.refresh_every; };
  const bool is_due = !solved || period(step) != period(*solved);
  return {.uses_kept = solved && (schedule.lag || !is_due), .solves = is_due};
}

}  // namespace bucket_moo
