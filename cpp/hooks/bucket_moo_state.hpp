// The state behind a registered hook: configuration, objective, worker, and what was solved last.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/util/intrusive_ptr.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <unordered_map>
#include <utility>
#include <vector>

#include "collective/configuration.hpp"
#include "collective/moo_collective.hpp"
#include "collective/point_to_point_transport.hpp"
#include "hooks/method_config.hpp"
#include "hooks/solver_states.hpp"
#include "hooks/worker.hpp"

namespace bucket_moo {

using FuturePtr = c10::intrusive_ptr<c10::ivalue::Future>;

/// What one bucket's last reduction was, for reports.
struct BucketRecord {
  std::int64_t step = 0;
  std::int64_t index = 0;               ///< the bucket's index in that step
  std::vector<std::string> parameters;  ///< names of the parameters it holds
  std::int64_t numel = 0;
  DType dtype = DType::float32;
  std::vector<std::string> objectives;  ///< [K]
  BucketSolution result;
};

/// Totals since the state was made.
struct Counters {
  std::int64_t buckets = 0;    ///< buckets reduced
  std::int64_t nonfinite = 0;  ///< of those, how many fell back to the mean for a NaN or Inf
  std::int64_t sparse = 0;     ///< sparse buckets, which are averaged
};

/// Runs MOO collectives for one group of ranks on a thread of its own and completes Futures. Thread-safe; calls that
/// reduce must come in the same order on every rank. Needs no Python.
///
/// What all ranks find wrong with a step before its first bucket (ValueError: other calls, other configuration, too many
/// objectives) fails that step on every rank, and the next one may be right again. After any other failure every later
/// reduction fails at once with the same error: ranks are out of step, and only a new state over a new group can go on.
///
/// Owned by shared pointers: what is in flight keeps the state alive until its Future is done.
class BucketMooState : public std::enable_shared_from_this<BucketMooState> {
 public:
  /// `group`: a group of CPU ranks (Gloo) that nothing else uses; null for a single rank. `configuration` is compared
  /// across ranks at the first reduction.
  /// `bucket_cap`: bytes up to which DDP fills its buckets. Larger ones are exchanged in pieces, so that the single
  /// bucket of DDP's first iteration does not take scratch memory for the whole model.
  BucketMooState(c10::intrusive_ptr<c10d::ProcessGroup> group, MethodConfig method, std::uint64_t seed,
                 std::int64_t bucket_cap, Configuration configuration);
  ~BucketMooState();

  /// This rank's objective and its weight inside it, from the next step on.
  /// ValueError: an empty name, one longer than kMaxObjectiveName bytes or with a zero byte, a weight that is negative
  /// or not finite.
  void set_objective(std::string name);
  void set_weight(double weight);

  /// Names for reports and saved solver states. Parameters not named are shown by their shapes, and states know them
  /// by the order in which they were first reduced.
  void name_parameters(const std::vector<std::pair<std::string, at::Tensor>>& named);

  /// Reduces a DDP bucket in place. A bucket of index 0 starts a step. Errors of the bucket itself (dtype, device,
  /// layout) are raised here, before anything is sent; the others are in the Future, with their types.
  /// The Future holds the bucket's buffer, or `result` where that is given: the buffer in another wrapping.
  FuturePtr run_bucket(c10d::GradBucket& bucket, c10::IValue result = {});

  /// Replaces `tensor` (contiguous, dense) by the MOO all-reduce over the group; a step of its own. `result` as above.
  FuturePtr all_reduce(at::Tensor tensor, c10::IValue result = {});

  /// output = this rank's shard of the MOO reduction of `input`, which holds world_size() shards; a step of its own.
  FuturePtr reduce_scatter(at::Tensor output, at::Tensor input, c10::IValue result = {});

  /// What is known of the newest step's buckets, by index. Waits for nothing: complete once backward has returned.
  std::vector<BucketRecord> records() const;
  Counters counters() const;
  std::size_t scratch_bytes() const;

  /// What the method carries from step to step, by bucket; see SolverStates. Complete once backward has returned.
  /// all_reduce and reduce_scatter have a state for every operation and number of elements.
  std::vector<SavedSolverState> solver_states() const;
  void set_solver_states(const std::vector<SavedSolverState>& saved);

  std::int64_t step() const;
  void set_step(std::int64_t step);
  int rank() const { return collective_.rank(); }
  int world_size() const { return collective_.world_size(); }

  /// Gives up what is in flight (its Futures get an error) and takes no more work. Idempotent.
  void shutdown();

  /// Raises RuntimeError on the thread that completes the Futures, which would wait for itself.
  void check_may_wait() const;

 private:
  using BucketKey = std::vector<const void*>;  // identities of the parameters a bucket holds

  using WeakTensorImpl = c10::weak_intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>;

  struct NamedParameter {
    WeakTensorImpl identity;  // addresses are used again
    std::string name;
  };

  struct Job {
    Operation operation;
    at::Tensor output;   // where the result goes
    at::Tensor input;    // reduce_scatter only
    c10::IValue result;  // what the Future is to hold
    std::int64_t index = 0;
    std::int64_t step = 0;
    std::int64_t tile_limit = 0;  // bytes
    BucketKey key;
    std::vector<std::string> parameters;
    std::vector<SolverStates::Parameter> state_key;
    bool starts_step = false;
    StepRecord record;  // of the step; complete if starts_step
  };

  FuturePtr submit(Job job);
  void refuse();
  void stamp(Job& job);
  void run_step_of(const Job& job);
  void run(const Job& job);
  void reduce_dense(const Job& job);
  BucketSolution reduce_with(const Job& job, DType dtype, const RandomKey& key, double* state);
  std::vector<double> load_state(const Job& job);
  void store_state(const Job& job, const std::vector<double>& values);
  void reduce_sparse(const Job& job);
  at::Tensor gather_columns(const at::Tensor& own);

  const std::shared_ptr<Transport> transport_;
  const MethodConfig method_;
  const std::uint64_t seed_;
  const std::int64_t bucket_cap_;
  const Configuration configuration_;

  // Used by the worker alone.
  MooCollective collective_;
  bool configuration_checked_ = false;
  std::exception_ptr step_failure_;  // of this step, alike on every rank
  std::exception_ptr failure_;       // for good

  mutable std::mutex mutex_;  // guards what follows
  std::string objective_;
  double weight_ = 1.0;
  std::int64_t step_ = 0;
  std::unordered_map<const void*, NamedParameter> parameter_names_;
  std::unordered_map<const void*, std::string> state_labels_;  // by which solver states know parameters; never changed
  SolverStates solver_states_;
  std::map<BucketKey, BucketRecord> records_;
  Counters counters_;
  std::size_t scratch_bytes_ = 0;

  Worker worker_;  // last: its thread must end before the rest goes
};

}  // namespace bucket_moo
