// The engine: steps, the reductions in them, and what outlives both.
#pragma once

#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <utility>
#include <vector>

#include "collective/rank_grid.hpp"
#include "engine/backend.hpp"
#include "engine/engine_options.hpp"
#include "engine/home_process.hpp"

namespace bucket_moo {

/// What a pass says of this rank.
struct PassOptions {
  std::string objective;
  double weight = 1.0;
  bool leaves_open = false;  ///< whether its step goes on with another pass
  /// Of its step; those of the first pass count. Null: not known.
  std::shared_ptr<const ObjectiveTotals> totals = {};
};

/// Runs MOO collectives for one group of ranks and completes Futures. Thread-safe; calls that reduce must come in the
/// same order on every rank. Needs no Python.
///
/// What is in flight keeps the backend alive until its Future is done, not the engine. In a forked child nothing of an
/// engine works, and it must not be destroyed there: owners ask is_at_home() first.
class Engine final {
 public:
  /// `group`, `pieces`: see make_backend().
  Engine(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device, EngineOptions options,
         c10::intrusive_ptr<c10d::ProcessGroup> pieces = {});

  /// Whether this is the process that the engine was made in.
  bool is_at_home() const { return home_.is_here(); }

  /// Raises RuntimeError unless is_at_home(). Steps and reductions call it; before the other functions it is the
  /// caller's.
  void check_at_home() const;

  /// This rank's objective and its weight inside it, from the next pass on.
  /// ValueError: an empty name, one longer than kMaxObjectiveName bytes or with a zero byte, a weight that is negative
  /// or not finite.
  void set_objective(std::string name);
  void set_weight(double weight);

  /// Whether passes that begin from now on leave their step open. `totals`: what is known of the steps that begin with
  /// them, the same on every rank; null: nothing.
  /// ValueError: as set_objective(), an objective twice, or a total that is negative or not finite.
  void set_accumulating(bool is_accumulating, const std::vector<std::pair<std::string, double>>& totals = {});

  /// What a pass says of this rank: as it is set now.
  PassOptions next_pass() const;

  /// The next reduction is the first one of a pass, at which the ranks tell each other their objectives and weights.
  /// It is another pass of the newest step if the one before it left that open, else the first of a step; a step that
  /// did not come to its end breaks off. Direct calls have steps of their own.
  void begin_pass() { begin_pass(next_pass()); }
  void begin_pass(PassOptions options);

  /// Raises what reduce() would for tensors that cannot be reduced. On the host the other ranks hear of it too, where
  /// the reduction would be the first of its pass.
  void check(const Reduction& reduction);

  /// Raises the same errors, outside of any pass.
  void check_alone(const Reduction& reduction) const;

  /// Reduces a bucket as a part of the newest step. Errors of its tensors (dtype, device, layout) are raised here, as
  /// check() does; the others here or in the Future, with their types.
  /// The Future holds the reduction's output, or `result` where that is given: the output in another wrapping.
  /// Where the pass leaves the step open, the output is zeros: the gradient is put aside.
  FuturePtr reduce(Reduction reduction, c10::IValue result = {});

  /// This rank does not make the reduction that the others make now, for a reason of its caller's: on the host they
  /// hear of it and raise too.
  void refuse_reduction();

  /// The newest pass had its last reduction.
  void end_pass();

  /// The same for a pass of compared reductions. The Future is done when late results are there; on the host also
  /// when all ranks have ended the pass here, or raises what is wrong where they have not. Null: there is nothing to
  /// wait for.
  FuturePtr end_compared_pass();

  /// Reduces a bucket in a step of its own, at any time, also while another step goes on. Without a bucket's name all
  /// calls of one operation on one number of elements are one bucket. Where set_accumulating(), the bucket's next call
  /// is another pass of that step.
  FuturePtr reduce_alone(Reduction reduction, c10::IValue result = {});

  /// Passes of the steps that are open: what was put aside and has not come back.
  int open_passes() const;

  /// Whether the newest pass closes a step that had others before.
  bool closes_several_passes() const;

  /// Gives up what was put aside: the next pass is the first of a step. One that is going on ends as it would have.
  void discard_open_steps();

  // What the backend knows, see there.
  std::vector<BucketRecord> records() const { return backend_->records(); }
  Counters counters() const { return backend_->counters(); }
  std::size_t scratch_bytes() const { return backend_->scratch_bytes(); }
  std::vector<SavedSolverState> solver_states() const { return backend_->solver_states(); }
  void set_solver_states(const std::vector<SavedSolverState>& saved) { backend_->set_solver_states(saved); }
  int rank() const { return backend_->rank(); }
  int world_size() const { return backend_->world_size(); }
  void shutdown() { backend_->shutdown(); }
  void check_may_wait() const { backend_->check_may_wait(); }

  MethodId method() const { return method_; }

  /// Steps so far, refused ones among them.
  std::int64_t step() const;
  void set_step(std::int64_t step);

 private:
  /// A step as far as it has come.
  struct Step {
    struct Pass : PassOptions {
      std::int64_t reductions = 0;
    };
    std::uint64_t line = kHookLine;
    std::int64_t number = 0;
    std::vector<Pass> passes;
    bool is_given_up = false;  // the next pass begins a step, whatever the newest said

    bool is_left_open() const { return !passes.empty() && passes.back().leaves_open; }
    bool is_open() const { return is_left_open() && !is_given_up; }
    void begin_pass(PassOptions options);
  };

  FuturePtr reduce_next(Step& step, Reduction reduction, c10::IValue result);
  void check_or_refuse(Step& step, const Reduction& reduction);
  void refuse(Step& step) noexcept;
  FuturePtr place(Step& step, Reduction reduction, c10::IValue result);

  void check_tensors(const Reduction& reduction) const;

  const HomeProcess home_;
  const c10::Device device_;
  const RankGrid grid_;
  const MethodId method_;
  const std::shared_ptr<Backend> backend_;

  mutable std::mutex order_;  // held while a call is checked and handed over; guards what follows
  Step step_of_hook_;
  std::map<std::uint64_t, Step> direct_;  // by line: steps of direct calls that are open

  mutable std::mutex mutex_;  // guards what follows; taken after order_
  std::string objective_;
  double weight_ = 1.0;
  bool is_accumulating_ = false;
  std::shared_ptr<const ObjectiveTotals> totals_;
  std::int64_t step_ = 0;
};

}  // namespace bucket_moo
