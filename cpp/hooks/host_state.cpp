#include "hooks/host_state.hpp"

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/jit_type.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "collective/agreed_error.hpp"
#include "hooks/sparse_mean.hpp"
#include "torch_types/dtype.hpp"

namespace bucket_moo {

HostState::HostState(c10::intrusive_ptr<c10d::ProcessGroup> group, StateOptions options)
    : HostState(group ? std::make_shared<PointToPointTransport>(std::move(group)) : nullptr, std::move(options)) {}

HostState::HostState(std::shared_ptr<Transport> transport, StateOptions options)
    : BucketMooState(std::move(options), c10::kCPU, transport ? transport->rank() : 0),
      transport_(std::move(transport)),
      collective_(transport_, method().method()),
      solver_states_(method().method()) {}

HostState::~HostState() { worker_.stop(); }

FuturePtr HostState::submit(Call call) {
  stamp(call);
  if (call.result.isNone()) {
    call.result = call.output;
  }
  const c10::TypePtr type = call.result.isTensor() ? c10::TypePtr(c10::TensorType::get()) : c10::AnyType::get();
  auto future = c10::make_intrusive<c10::ivalue::Future>(type);
  const auto job = std::make_shared<Job>();
  job->call = std::move(call);
  {
    const std::lock_guard lock(mutex());
    waiting_.push_back(job);
  }
  // The job keeps the state alive while it runs, and lets go of it before its Future is done, so that whoever waits for
  // the Future and then drops the state ends the worker, and not the worker itself.
  const bool accepted =
      worker_.submit([self = std::static_pointer_cast<HostState>(shared_from_this()), job, future]() mutable {
        self->run_step_of(*job);
        const std::exception_ptr failure = self->failure_ ? self->failure_ : self->step_failure_;
        const bool solves_late = !failure && job->sketched != nullptr;
        if (solves_late) {
          self->set_solving_late(true);
        } else {
          self.reset();
        }
        // While `result` or the waiting caller still holds them: to drop the last C++ reference to a tensor that Python
        // knows takes the GIL.
        job->call.output.reset();
        job->call.input.reset();
        if (failure) {
          future->setError(failure);
        } else {
          future->markCompleted(std::move(job->call.result));
        }
        if (solves_late) {
          self->attempt([&] { self->solve(*job); });
          self->set_solving_late(false);
        }
      });
  TORCH_CHECK(accepted, "bucket_moo_ext: this state was shut down; make a new one");
  return future;
}

/// Tells the other ranks, which make a call of their own, that this one refused its arguments: they raise too instead
/// of waiting for it.
void HostState::refuse() {
  Call call;
  call.operation = Operation::invalid;
  call.starts_step = true;
  submit(std::move(call));
}

void HostState::run_step_of(Job& job) {
  {
    const std::lock_guard lock(mutex());
    waiting_.pop_front();  // this job: the worker takes them in the same order
  }
  if (failure_) {
    return;
  }
  if (job.call.starts_step) {
    step_failure_ = nullptr;
  }
  if (!step_failure_) {
    attempt([&] { run(job); });
  }
}

/// Runs a part of a job and keeps what it throws.
void HostState::attempt(const std::function<void()>& part) {
  const at::NoGradGuard no_grad;
  try {
    part();
  } catch (const AgreedError&) {  // ranks are still in step
    step_failure_ = std::current_exception();
  } catch (...) {
    failure_ = std::current_exception();
  }
}

void HostState::run(Job& job) {
  const Call& call = job.call;
  if (!configuration_checked_) {
    check_same_configuration(
        rank(), world_size(), [this](const at::Tensor& blocks) { all_gather(blocks); }, configuration());
    configuration_checked_ = true;
  }
  if (call.starts_step) {
    collective_.begin_step(call.record);
    check_method_fits(collective_.objectives().k());
    const std::lock_guard lock(mutex());
    // Buckets that this step does not have any more (DDP rebuilt them) must not linger in the report.
    std::erase_if(records_, [&](const auto& item) { return item.second.step + 1 < call.record.step; });
  }
  if (call.output.is_sparse()) {
    reduce_sparse(call);
  } else {
    reduce_dense(job);
  }
}

void HostState::reduce_dense(Job& job) {
  const Call& call = job.call;
  BucketRecord record;
  record.step = call.step;
  record.index = call.index;
  record.parameters = call.parameters;
  record.dtype = call.dtype();
  record.objectives = collective_.objectives().names;
  record.numel = call.bucket().numel();
  record.width = sketch().width_for(record.numel);
  record.solved_step = call.step;
  if (record.width == 0) {
    record.result = reduce_exact(call);
  } else {
    KeptWeights used = reduce_sketched(job);
    record.solved_step = used.step;
    record.result = std::move(used.solution);
  }
  const std::lock_guard lock(mutex());
  ++counters_.buckets;
  counters_.nonfinite += record.result.solution.status == Status::nonfinite;
  scratch_bytes_ = collective_.scratch_bytes();
  records_[call.key] = std::move(record);
}

BucketSolution HostState::reduce_exact(const Call& call) {
  std::vector<double> memory = load_state(call);
  double* const state = memory.empty() ? nullptr : memory.data();
  void* const output = call.output.mutable_data_ptr();
  const std::int64_t n = call.output.numel();
  const RandomKey key = key_of(call, seed());
  BucketSolution solution = call.operation == Operation::reduce_scatter
                                ? collective_.reduce_scatter(output, call.input.const_data_ptr(), n, call.dtype(), key,
                                                             call.tile_limit, state)
                                : collective_.all_reduce(output, n, call.dtype(), key, call.tile_limit, state);
  store_state(call, memory);
  return solution;
}

RandomKey HostState::key_of(const Call& call, std::uint64_t seed) {
  return {seed, static_cast<std::uint64_t>(call.step), static_cast<std::uint64_t>(call.index)};
}

/// Returns the weights that were used.
HostState::KeptWeights HostState::reduce_sketched(Job& job) {
  const Call& call = job.call;
  prepare(job);
  const bool is_fresh = !job.kept;
  const KeptWeights used = is_fresh ? solve(job) : std::move(*job.kept);
  // NaN and Inf were seen when fresh weights were solved for. Kept ones know nothing of this step's gradients.
  const ZeroRows zero_rows = is_fresh ? ZeroRows::skip : ZeroRows::read;
  const std::int64_t n = call.output.numel();
  void* const output = call.output.mutable_data_ptr();
  const auto meanwhile = [this] { prepare_next(); };
  if (call.operation == Operation::reduce_scatter) {
    collective_.weighted_reduce_scatter(output, call.input.const_data_ptr(), n, call.dtype(), used.solution.weights,
                                        zero_rows, meanwhile);
  } else {
    collective_.weighted_all_reduce(output, n, call.dtype(), used.solution.weights, zero_rows, meanwhile);
  }
  return used;
}

/// Decides whether this step solves for the bucket's weights, and sends its sketch off if so.
void HostState::prepare(Job& job) {
  if (job.prepared) {
    return;
  }
  job.prepared = true;
  const Call& call = job.call;
  {
    const std::lock_guard lock(mutex());
    const KeptWeights* const kept = kept_weights_.find(call.state_key);
    if (kept != nullptr && kept->objectives == collective_.objectives().names) {
      const bool due = is_due(call.step, kept->step, schedule().refresh_every);
      if (!due || schedule().lag) {
        job.kept = *kept;
      }
      if (!due) {
        return;
      }
    }
  }
  const at::Tensor& bucket = call.bucket();
  const RandomKey key = key_of(call, sketch().seed);
  job.sketched = collective_.start_sketch(bucket.const_data_ptr(), bucket.numel(), call.dtype(), key,
                                          sketch().width_for(bucket.numel()));
}

/// So that its sketch travels while the call before it still sums. Only in the same step, whose objectives are known.
void HostState::prepare_next() {
  std::shared_ptr<Job> next;
  {
    const std::lock_guard lock(mutex());
    if (!waiting_.empty()) {
      next = waiting_.front();
    }
  }
  if (next != nullptr && !next->call.starts_step && !next->call.output.is_sparse() &&
      sketch().width_for(next->call.bucket().numel()) > 0) {
    prepare(*next);
  }
}

/// Waits for the sketches of the job's bucket, and keeps what it solves for where that is to be used again.
HostState::KeptWeights HostState::solve(Job& job) {
  const Call& call = job.call;
  std::vector<double> memory = load_state(call);
  const RandomKey key = key_of(call, seed());
  KeptWeights solved{
      collective_.objectives().names, call.step,
      collective_.solve_sketched(std::move(job.sketched), key, memory.empty() ? nullptr : memory.data())};
  store_state(call, memory);
  if (keeps_weights() && solved.solution.solution.status != Status::nonfinite) {
    const std::lock_guard lock(mutex());
    kept_weights_.keep(call.state_key, solved);
  }
  return solved;
}

void HostState::set_solving_late(bool is_solving) {
  const std::lock_guard lock(mutex());
  solving_late_ = is_solving;
  solved_late_.notify_all();
}

/// Where weights lag, the last solve goes on after its step's Future is done: whoever reads or replaces what solves
/// leave behind waits for it here, so that all ranks see the same.
std::unique_lock<std::mutex> HostState::lock_after_late_solve() const {
  std::unique_lock lock(mutex());
  if (solving_late_) {
    check_may_wait();
  }
  solved_late_.wait(lock, [this] { return !solving_late_; });
  return lock;
}

/// Empty for methods without a memory.
std::vector<double> HostState::load_state(const Call& call) {
  const std::lock_guard lock(mutex());
  return solver_states_.size(1) == 0 ? std::vector<double>()
                                     : solver_states_.load(call.state_key, collective_.objectives().names);
}

void HostState::store_state(const Call& call, const std::vector<double>& values) {
  if (values.empty()) {
    return;
  }
  const std::lock_guard lock(mutex());
  solver_states_.store(call.state_key, collective_.objectives().names, values);
}

/// As AllGather.
void HostState::all_gather(const at::Tensor& blocks) {
  if (transport_) {
    transport_->all_gather(static_cast<std::byte*>(blocks.mutable_data_ptr()),
                           blocks.nbytes() / static_cast<std::size_t>(world_size()));
  }
}

void HostState::reduce_sparse(const Call& call) {
  reduce_sparse_mean(call.output, rank(), world_size(), [this](const at::Tensor& blocks) { all_gather(blocks); });
  const std::lock_guard lock(mutex());
  ++counters_.buckets;
  ++counters_.sparse;
}

std::vector<BucketRecord> HostState::records() const {
  std::vector<BucketRecord> last;
  {
    const std::lock_guard lock(mutex());
    std::int64_t newest = 0;
    for (const auto& [key, record] : records_) {
      newest = std::max(newest, record.step);
    }
    for (const auto& [key, record] : records_) {
      if (record.step == newest) {
        last.push_back(record);
      }
    }
  }
  std::sort(last.begin(), last.end(), [](const auto& a, const auto& b) { return a.index < b.index; });
  return last;
}

Counters HostState::counters() const {
  const std::lock_guard lock(mutex());
  return counters_;
}

std::size_t HostState::scratch_bytes() const {
  const std::lock_guard lock(mutex());
  return scratch_bytes_;
}

void HostState::moved_to(std::int64_t) {
  const auto lock = lock_after_late_solve();
  records_.clear();  // those of steps that have not been, seen from here
  kept_weights_.clear();
}

void HostState::check_may_wait() const {
  TORCH_CHECK(!worker_.is_this_thread(),
              "bucket_moo_ext: a blocking call from a callback of this state's own Future would wait for itself; use "
              "async_op=True there");
}

std::vector<SavedSolverState> HostState::solver_states() const {
  const auto lock = lock_after_late_solve();
  return solver_states_.save();
}

void HostState::set_solver_states(const std::vector<SavedSolverState>& saved) {
  const auto lock = lock_after_late_solve();
  solver_states_.restore(saved);
}

void HostState::shutdown() {
  if (transport_) {
    transport_->abort();
  }
  worker_.stop();
}

}  // namespace bucket_moo
