// The state that reduces tensors in host memory, on a thread of its own.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

#include "collective/moo_collective.hpp"
#include "collective/point_to_point_transport.hpp"
#include "hooks/bucket_moo_state.hpp"
#include "hooks/solver_states.hpp"
#include "hooks/worker.hpp"

namespace bucket_moo {

/// Runs first-in first-out on one worker thread, over a group that nothing else uses.
///
/// What all ranks find wrong with a step before its first bucket (ValueError: other calls, other configuration, too many
/// objectives) fails that step on every rank, and the next one may be right again. After any other failure every later
/// reduction fails at once with the same error: ranks are out of step, and only a new state over a new group can go on.
class HostState final : public BucketMooState {
 public:
  /// `group`: a group of CPU ranks (Gloo) that nothing else uses; null for a single rank.
  HostState(c10::intrusive_ptr<c10d::ProcessGroup> group, StateOptions options);
  ~HostState() override;

  std::vector<BucketRecord> records() const override;
  Counters counters() const override;
  std::size_t scratch_bytes() const override;
  std::vector<SavedSolverState> solver_states() const override;
  void set_solver_states(const std::vector<SavedSolverState>& saved) override;
  int rank() const override { return collective_.rank(); }
  int world_size() const override { return collective_.world_size(); }
  void shutdown() override;
  void check_may_wait() const override;

 private:
  HostState(std::shared_ptr<Transport> transport, StateOptions options);

  FuturePtr submit(Call call) override;
  void refuse() override;
  void moved_to(std::int64_t step) override;

  void run_step_of(const Call& call);
  void run(const Call& call);
  void reduce_dense(const Call& call);
  BucketSolution reduce_with(const Call& call, DType dtype, const RandomKey& key, double* state);
  std::vector<double> load_state(const Call& call);
  void store_state(const Call& call, const std::vector<double>& values);
  void reduce_sparse(const Call& call);
  void all_gather(std::byte* blocks, std::size_t bytes);

  const std::shared_ptr<Transport> transport_;

  // Used by the worker alone.
  MooCollective collective_;
  bool configuration_checked_ = false;
  std::exception_ptr step_failure_;  // of this step, alike on every rank
  std::exception_ptr failure_;       // for good

  // Guarded by mutex().
  SolverStates solver_states_;
  std::map<BucketKey, BucketRecord> records_;
  Counters counters_;
  std::size_t scratch_bytes_ = 0;

  Worker worker_;  // last: its thread must end before the rest goes
};

}  // namespace bucket_moo
