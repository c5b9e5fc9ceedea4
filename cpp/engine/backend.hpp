// Where the work of an engine is done.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "engine/bucket_record.hpp"
#include "engine/reduction.hpp"

namespace bucket_moo {

/// Reduces buckets, one after the other in the order in which they come, and keeps what is to outlive them. Made by
/// make_backend(). Thread-safe; the engine sees to it that reductions come one at a time.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;

  /// Raises for a reduction that cannot be run here, before anything is sent or counted. Where it does not, submit()
  /// follows: a backend may prepare for that.
  /// `is_alone`: its step is this pass alone.
  virtual void check(const Reduction& reduction, bool starts_step, bool is_alone) = 0;

  /// Does the work of a reduction whose arguments are right. Raises or puts into the Future what goes wrong.
  virtual FuturePtr submit(PlacedReduction reduction) = 0;

  /// The step of a line had its last reduction. Missing where a step broke off.
  /// Returns what is done when its late results are there, or raises why they are not; null if there are none.
  virtual FuturePtr end_step(std::uint64_t line) = 0;

  /// Whether a reduction of Operation::invalid tells the other ranks that this one refused its arguments, so that they
  /// raise too instead of waiting for it.
  virtual bool tells_refusals() const = 0;

  /// The next step has the number `step` + 1. What was kept of other steps is dropped, but for memories of methods.
  virtual void continue_from(std::int64_t step) = 0;

  /// The number of steps, where the backend knows better than who calls it: replays of a graph are steps too.
  virtual std::optional<std::int64_t> counted_steps() const = 0;

  /// What is known of the newest step's buckets, by index. Complete once backward has returned.
  virtual std::vector<BucketRecord> records() const = 0;
  virtual Counters counters() const = 0;
  virtual std::size_t scratch_bytes() const = 0;

  /// What the method carries from step to step, by bucket. Complete once backward has returned.
  virtual std::vector<SavedSolverState> solver_states() const = 0;
  /// Replaces all, and drops what was kept of earlier steps.
  /// ValueError: a parameter in two buckets, an objective twice, or a wrong number of values.
  virtual void set_solver_states(const std::vector<SavedSolverState>& saved) = 0;

  /// Gives up what is in flight (its Futures get an error) and takes no more work. Idempotent.
  virtual void shutdown() = 0;

  /// Raises RuntimeError on a thread that must not wait for Futures, because it completes them.
  virtual void check_may_wait() const = 0;
};

}  // namespace bucket_moo
