#include "engine/host_backend.hpp"

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/jit_type.h>
#include <c10/util/Exception.h>

#include <utility>

#include "collective/agreed_error.hpp"
#include "collective/sparse_mean.hpp"
#include "engine/weight_schedule.hpp"
#include "torch_types/dtype.hpp"

namespace bucket_moo {

std::shared_ptr<HostBackend> HostBackend::make(c10::intrusive_ptr<c10d::ProcessGroup> group, EngineOptions options) {
  std::shared_ptr<Transport> transport;
  if (group) {
    transport = std::make_shared<PointToPointTransport>(std::move(group));
  }
  return std::shared_ptr<HostBackend>(new HostBackend(std::move(transport), std::move(options)));
}

HostBackend::HostBackend(std::shared_ptr<Transport> transport, EngineOptions options)
    : options_(std::move(options)),
      method_(options_.method.method()),
      transport_(std::move(transport)),
      collective_(transport_, method_) {}

HostBackend::~HostBackend() { worker_.stop(); }

FuturePtr HostBackend::submit(PlacedReduction call) {
  const c10::TypePtr type = call.result.isTensor() ? c10::TypePtr(c10::TensorType::get()) : c10::AnyType::get();
  auto future = c10::make_intrusive<c10::ivalue::Future>(type);
  const auto job = std::make_shared<Job>();
  job->call = std::move(call);
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(job);
  }
  // The job keeps the backend alive while it runs, and lets go of it before its Future is done, so that whoever waits
  // for the Future and then drops the engine ends the worker, and not the worker itself.
  const bool accepted = worker_.submit([self = shared_from_this(), job, future]() mutable {
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
  if (!accepted) {
    const std::lock_guard lock(mutex_);
    std::erase(waiting_, job);
  }
  TORCH_CHECK(accepted, "bucket_moo_ext: this state was shut down; make a new one");
  return future;
}

void HostBackend::run_step_of(Job& job) {
  {
    const std::lock_guard lock(mutex_);
    waiting_.pop_front();  // this job: the worker takes them in the same order
  }
  if (failure_) {
    return;
  }
  if (job.call.starts_step()) {
    step_failure_ = nullptr;
  }
  if (!step_failure_) {
    attempt([&] { run(job); });
  }
}

/// Runs a part of a job and keeps what it throws.
void HostBackend::attempt(const std::function<void()>& part) {
  const at::NoGradGuard no_grad;
  try {
    part();
  } catch (const AgreedError&) {  // ranks are still in step
    step_failure_ = std::current_exception();
  } catch (...) {
    failure_ = std::current_exception();
  }
}

void HostBackend::run(Job& job) {
  const PlacedReduction& call = job.call;
  if (!configuration_checked_) {
    check_same_configuration(
        rank(), world_size(), [this](const at::Tensor& blocks) { all_gather(blocks); }, options_.configuration);
    configuration_checked_ = true;
  }
  if (call.starts_step()) {
    collective_.begin_step(call.record);
    options_.check_objectives(collective_.objectives().k());
    const std::lock_guard lock(mutex_);
    book_.forget_records_of_long_ago(call.step);
  }
  if (call.output.is_sparse()) {
    reduce_sparse(call);
  } else {
    reduce_dense(job);
  }
}

void HostBackend::reduce_dense(Job& job) {
  const PlacedReduction& call = job.call;
  BucketRecord record = record_of(call, options_.sketch);
  record.objectives = collective_.objectives().names;
  if (record.width == 0) {
    record.result = reduce_exact(call);
  } else {
    KeptWeights used = reduce_sketched(job);
    record.solved_step = used.step;
    record.result = std::move(used.solution);
  }
  const std::lock_guard lock(mutex_);
  ++counters_.buckets;
  counters_.nonfinite += record.result.solution.status == Status::nonfinite;
  scratch_bytes_ = collective_.scratch_bytes();
  book_.open(call.bucket).record = std::move(record);
}

BucketSolution HostBackend::reduce_exact(const PlacedReduction& call) {
  std::vector<double> memory = load_memory(call);
  double* const state = memory.empty() ? nullptr : memory.data();
  void* const output = call.output.mutable_data_ptr();
  const std::int64_t n = call.output.numel();
  const RandomKey key = key_of(call, options_.seed);
  BucketSolution solution = call.operation == Operation::reduce_scatter
                                ? collective_.reduce_scatter(output, call.input.const_data_ptr(), n, call.dtype(), key,
                                                             call.tile_limit, state)
                                : collective_.all_reduce(output, n, call.dtype(), key, call.tile_limit, state);
  store_memory(call, memory);
  return solution;
}

RandomKey HostBackend::key_of(const PlacedReduction& call, std::uint64_t seed) {
  return {seed, static_cast<std::uint64_t>(call.step), static_cast<std::uint64_t>(call.index)};
}

/// Returns the weights that were used.
HostBackend::KeptWeights HostBackend::reduce_sketched(Job& job) {
  const PlacedReduction& call = job.call;
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

/// Decides which weights this step uses, and sends the bucket's sketch off if it solves for new ones.
void HostBackend::prepare(Job& job) {
  if (job.prepared) {
    return;
  }
  job.prepared = true;
  const PlacedReduction& call = job.call;
  {
    const std::lock_guard lock(mutex_);
    const Book::Page* const page = book_.find(call.bucket);
    const bool fits = page != nullptr && page->kept && page->kept->objectives == collective_.objectives().names;
    const WeightPlan plan =
        plan_weights(options_.schedule, call.step, fits ? std::optional(page->kept->step) : std::nullopt);
    if (plan.uses_kept) {
      job.kept = *page->kept;
    }
    if (!plan.solves) {
      return;
    }
  }
  const at::Tensor& gradient = call.gradient();
  const RandomKey key = key_of(call, options_.sketch.seed);
  job.sketched = collective_.start_sketch(gradient.const_data_ptr(), gradient.numel(), call.dtype(), key,
                                          options_.sketch.width_for(gradient.numel()));
}

/// So that its sketch travels while the call before it still sums. Only in the same step, whose objectives are known.
void HostBackend::prepare_next() {
  std::shared_ptr<Job> next;
  {
    const std::lock_guard lock(mutex_);
    if (!waiting_.empty()) {
      next = waiting_.front();
    }
  }
  if (next != nullptr && !next->call.starts_step() && !next->call.output.is_sparse() &&
      options_.sketch.width_for(next->call.gradient().numel()) > 0) {
    prepare(*next);
  }
}

/// Waits for the sketches of the job's bucket, and keeps what it solves for where that is to be used again.
HostBackend::KeptWeights HostBackend::solve(Job& job) {
  const PlacedReduction& call = job.call;
  std::vector<double> memory = load_memory(call);
  const RandomKey key = key_of(call, options_.seed);
  KeptWeights solved{
      collective_.objectives().names, call.step,
      collective_.solve_sketched(std::move(job.sketched), key, memory.empty() ? nullptr : memory.data())};
  store_memory(call, memory);
  if (options_.keeps_weights() && solved.solution.solution.status != Status::nonfinite) {
    const std::lock_guard lock(mutex_);
    book_.open(call.bucket).kept = solved;
  }
  return solved;
}

void HostBackend::set_solving_late(bool is_solving) {
  const std::lock_guard lock(mutex_);
  solving_late_ = is_solving;
  solved_late_.notify_all();
}

/// Where weights lag, the last solve goes on after its step's Future is done: whoever reads or replaces what solves
/// leave behind waits for it here, so that all ranks see the same.
std::unique_lock<std::mutex> HostBackend::lock_after_late_solve() const {
  std::unique_lock lock(mutex_);
  if (solving_late_) {
    check_may_wait();
  }
  solved_late_.wait(lock, [this] { return !solving_late_; });
  return lock;
}

/// Empty for methods without a memory.
std::vector<double> HostBackend::load_memory(const PlacedReduction& call) {
  if (!has_memory(method_)) {
    return {};
  }
  const std::lock_guard lock(mutex_);
  return memory_of(call.bucket).load(collective_.objectives().names);
}

void HostBackend::store_memory(const PlacedReduction& call, const std::vector<double>& values) {
  if (values.empty()) {
    return;
  }
  const std::lock_guard lock(mutex_);
  memory_of(call.bucket).store(collective_.objectives().names, values);
}

SolverMemory& HostBackend::memory_of(const BucketId& bucket) {
  std::optional<SolverMemory>& memory = book_.open(bucket).memory;
  return memory ? *memory : memory.emplace(method_);
}

/// As AllGather.
void HostBackend::all_gather(const at::Tensor& blocks) {
  if (transport_) {
    transport_->all_gather(static_cast<std::byte*>(blocks.mutable_data_ptr()),
                           blocks.nbytes() / static_cast<std::size_t>(world_size()));
  }
}

void HostBackend::reduce_sparse(const PlacedReduction& call) {
  reduce_sparse_mean(call.output, rank(), world_size(), [this](const at::Tensor& blocks) { all_gather(blocks); });
  const std::lock_guard lock(mutex_);
  ++counters_.buckets;
  ++counters_.sparse;
}

std::vector<BucketRecord> HostBackend::records() const {
  const std::lock_guard lock(mutex_);
  std::vector<BucketRecord> last;
  for (const BucketRecord* const record : book_.newest_records()) {
    last.push_back(*record);
  }
  return last;
}

Counters HostBackend::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

std::size_t HostBackend::scratch_bytes() const {
  const std::lock_guard lock(mutex_);
  return scratch_bytes_;
}

void HostBackend::continue_from(std::int64_t) {
  const auto lock = lock_after_late_solve();
  book_.forget_steps();  // which have not been, seen from here
}

void HostBackend::check_may_wait() const {
  TORCH_CHECK(!worker_.is_this_thread(),
              "bucket_moo_ext: a blocking call from a callback of this state's own Future would wait for itself; use "
              "async_op=True there");
}

std::vector<SavedSolverState> HostBackend::solver_states() const {
  const auto lock = lock_after_late_solve();
  std::vector<SavedSolverState> saved;
  for (const auto& [names, memory] : book_.memories()) {
    saved.push_back({names, memory->objectives(), memory->values()});
  }
  return saved;
}

void HostBackend::set_solver_states(const std::vector<SavedSolverState>& saved) {
  Book fresh;
  for (const SavedSolverState& bucket : saved) {
    check_saved(method_, bucket);
    check_distinct(fresh.add(bucket.parameters, SolverMemory(method_, bucket)));
  }
  const auto lock = lock_after_late_solve();
  book_ = std::move(fresh);
}

void HostBackend::shutdown() {
  if (transport_) {
    transport_->abort();
  }
  worker_.stop();
}

}  // namespace bucket_moo
