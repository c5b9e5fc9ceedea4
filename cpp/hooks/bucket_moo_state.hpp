// The state behind a registered hook, as hooks and bindings see it: configuration, objective, and what was solved last.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <unordered_map>
#include <utility>
#include <vector>

#include "collective/configuration.hpp"
#include "collective/moo_collective.hpp"
#include "collective/sketch_options.hpp"
#include "hooks/home_process.hpp"
#include "hooks/kept_gradients.hpp"
#include "hooks/kept_weights.hpp"
#include "hooks/method_config.hpp"
#include "hooks/parameter_owners.hpp"
#include "hooks/solver_states.hpp"
#include "torch_types/dtype.hpp"

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
  std::int64_t width = 0;               ///< columns of the sketches that the Gramian is from; 0: it is exact
  std::int64_t solved_step = 0;         ///< the step whose gradients `result` is from; before `step` for kept weights
  BucketSolution result;
};

/// Totals since the state was made.
struct Counters {
  std::int64_t buckets = 0;    ///< buckets reduced
  std::int64_t nonfinite = 0;  ///< of those, how many fell back to the mean for a NaN or Inf
  std::int64_t sparse = 0;     ///< sparse buckets, which are averaged
};

/// What all ranks of a group give alike.
struct StateOptions {
  MethodConfig method;
  std::uint64_t seed = 0;
  SketchOptions sketch;
  SolveSchedule schedule;
  /// Bytes up to which DDP fills its buckets. Larger ones are exchanged in pieces, so that the single bucket of DDP's
  /// first iteration does not take scratch memory for the whole model.
  std::int64_t bucket_cap = 0;
  Configuration configuration;  ///< compared across ranks at the first reduction
};

/// Runs MOO collectives for one group of ranks and completes Futures. Thread-safe; calls that reduce must come in the
/// same order on every rank. Needs no Python. Made by make_state(); where the work is done is up to HostState and
/// DeviceState.
///
/// Owned by shared pointers: what is in flight keeps the state alive until its Future is done. In a forked child
/// nothing of it works, and it must not be destroyed there: owners ask is_at_home() first.
class BucketMooState : public std::enable_shared_from_this<BucketMooState> {
 public:
  virtual ~BucketMooState() = default;

  /// Whether this is the process that the state was made in.
  bool is_at_home() const { return home_.is_here(); }

  /// Raises RuntimeError unless is_at_home(). The reductions call it; before the other functions it is the caller's.
  void check_at_home() const;

  /// This rank's objective and its weight inside it, from the next step on.
  /// ValueError: an empty name, one longer than kMaxObjectiveName bytes or with a zero byte, a weight that is negative
  /// or not finite.
  void set_objective(std::string name);
  void set_weight(double weight);

  /// Names for reports and saved solver states. Parameters not named are shown by their shapes, and states know them
  /// by the order in which they were first reduced.
  void name_parameters(const std::vector<std::pair<std::string, at::Tensor>>& named);

  /// Reduces a DDP bucket in place. A bucket of index 0 starts a step. Errors of the bucket itself (dtype, device,
  /// layout) are raised here, before anything is sent; the others here or in the Future, with their types.
  /// The Future holds the bucket's buffer, or `result` where that is given: the buffer in another wrapping.
  FuturePtr run_bucket(c10d::GradBucket& bucket, c10::IValue result = {});

  /// Replaces `tensor` (contiguous, dense) by the MOO all-reduce over the group; a step of its own. `result` as above.
  FuturePtr all_reduce(at::Tensor tensor, c10::IValue result = {});

  /// output = this rank's shard of the MOO reduction of `input`, which holds world_size() shards; a step of its own.
  FuturePtr reduce_scatter(at::Tensor output, at::Tensor input, c10::IValue result = {});

  /// What is known of the newest step's buckets, by index. Complete once backward has returned.
  virtual std::vector<BucketRecord> records() const = 0;
  virtual Counters counters() const = 0;
  virtual std::size_t scratch_bytes() const = 0;

  /// What the method carries from step to step, by bucket. Complete once backward has returned. all_reduce and
  /// reduce_scatter have a state for every operation and number of elements.
  virtual std::vector<SavedSolverState> solver_states() const = 0;
  virtual void set_solver_states(const std::vector<SavedSolverState>& saved) = 0;

  virtual std::int64_t step() const;
  void set_step(std::int64_t step);
  virtual int rank() const = 0;
  virtual int world_size() const = 0;

  /// Gives up what is in flight (its Futures get an error) and takes no more work. Idempotent.
  virtual void shutdown() = 0;

  /// Raises RuntimeError on a thread that must not wait for this state's Futures, because it completes them.
  virtual void check_may_wait() const = 0;

 protected:
  using BucketKey = std::vector<const void*>;  // identities of the parameters a bucket holds

  /// One reduction.
  struct Call {
    Operation operation;
    at::Tensor output;   // where the result goes
    at::Tensor input;    // reduce_scatter only
    c10::IValue result;  // what the Future is to hold
    std::int64_t index = 0;
    std::int64_t step = 0;
    std::int64_t tile_limit = 0;  // bytes
    BucketKey key;
    std::vector<std::string> parameters;
    std::vector<BucketParameter> state_key;
    bool starts_step = false;
    bool ends_step = false;
    StepRecord record;  // of the step; complete if starts_step

    DType dtype() const { return dtype_of(bucket().scalar_type(), "a bucket"); }
    const at::Tensor& bucket() const { return operation == Operation::reduce_scatter ? input : output; }
  };

  BucketMooState(StateOptions options, c10::Device device, int rank);

  /// Does the work of a call whose arguments are right. Raises or puts into the Future what goes wrong.
  virtual FuturePtr submit(Call call) = 0;

  /// A call was refused, of which the other ranks know nothing yet.
  virtual void refuse() = 0;

  /// set_step(), for those who count themselves.
  virtual void moved_to(std::int64_t step) = 0;

  /// A call of this step, or the first of the next one.
  void stamp(Call& call);

  /// Raises AgreedError if the method's options are for another number of objectives than K, on which ranks agreed.
  void check_method_fits(int k) const;

  const MethodConfig& method() const { return options_.method; }
  const Configuration& configuration() const { return options_.configuration; }
  std::uint64_t seed() const { return options_.seed; }
  const SketchOptions& sketch() const { return options_.sketch; }
  const SolveSchedule& schedule() const { return options_.schedule; }
  /// Whether there are weights that outlive their step.
  bool keeps_weights() const { return sketch().enabled() && schedule().keeps_weights(); }
  c10::Device device() const { return device_; }
  std::mutex& mutex() const { return mutex_; }

 private:
  using WeakTensorImpl = c10::weak_intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>;

  struct NamedParameter {
    WeakTensorImpl identity;  // addresses are used again
    std::string name;
  };

  template <class Check>
  void check_or_refuse(bool starts_step, Check check);
  void check_dense(const at::Tensor& tensor, const char* what) const;
  void check_bucket(const at::Tensor& buffer) const;
  void check_reduce_scatter(const at::Tensor& output, const at::Tensor& input) const;

  void check_kept_gradients(const Call& call, const std::vector<at::Tensor>& parameters);

  const HomeProcess home_;
  const StateOptions options_;
  const c10::Device device_;
  KeptGradients kept_gradients_;
  mutable std::mutex mutex_;  // guards what follows, and what subclasses say
  std::string objective_;
  double weight_ = 1.0;
  std::int64_t step_ = 0;
  std::unordered_map<const void*, NamedParameter> parameter_names_;
  std::unordered_map<const void*, std::string> state_labels_;  // by which solver states know parameters; never changed
};

}  // namespace bucket_moo
