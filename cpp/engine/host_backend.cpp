#include "engine/host_backend.hpp"

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/jit_type.h>
#include <ATen/record_function.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <span>
#include <string>
#include <utility>

#include "c10d_collective/sparse_mean.hpp"
#include "c10d_collective/torch_profiler.hpp"
#include "collective/agreed_error.hpp"
#include "collective/host_all_gather.hpp"
#include "engine/parts.hpp"
#include "engine/step_totals.hpp"
#include "engine/weight_schedule.hpp"
#include "torch_types/dtype.hpp"
#include "torch_types/value_error.hpp"

namespace bucket_moo {
namespace {

/// `transport`: null for a single rank, whose block is there.
HostAllGather all_gather_over(const std::shared_ptr<PointToPointTransport>& transport) {
  return [transport](std::span<std::byte> blocks) {
    if (transport) {
      transport->all_gather(blocks.data(), blocks.size() / static_cast<std::size_t>(transport->size()));
    }
  };
}

/// The same for tensors.
AllGather tensor_all_gather_over(const std::shared_ptr<PointToPointTransport>& transport) {
  return [all_gather = all_gather_over(transport)](const at::Tensor& blocks) {
    all_gather({static_cast<std::byte*>(blocks.mutable_data_ptr()), blocks.nbytes()});
  };
}

}  // namespace

std::shared_ptr<HostBackend> HostBackend::make(c10::intrusive_ptr<c10d::ProcessGroup> group, EngineOptions options,
                                               c10::intrusive_ptr<c10d::ProcessGroup> pieces) {
  Links links;
  if (group) {
    using Channel = PointToPointTransport::Channel;
    const int rank = group->getRank();
    const RankGrid& grid = options.grid;
    links.all = std::make_shared<PointToPointTransport>(group);
    links.across = links.all;
    if (grid.has_levels()) {
      links.across = std::make_shared<PointToPointTransport>(group, Channel::across, grid.across_group(rank));
      links.inside = std::make_shared<PointToPointTransport>(group, Channel::inside, grid.inside_group(rank));
    }
  }
  if (pieces) {
    links.pieces = std::make_shared<PointToPointTransport>(std::move(pieces));
  }
  return std::shared_ptr<HostBackend>(new HostBackend(std::move(links), std::move(options)));
}

HostBackend::HostBackend(Links links, EngineOptions options)
    : options_(std::move(options)),
      of_direct_calls_(Scope::bucket, {}, options_.grouping.by_support(), options_.grouping.keeps_mean_scale()),
      preference_(options_.method.preference()),
      method_(options_.method.method(preference_.data(), options_.method.permutation().data())),
      links_(std::move(links)),
      collective_(links_.across, method_, links_.inside ? links_.inside : links_.pieces, options_.takes_row_norms) {
  show_stages_to_torch();
  if (links_.inside) {
    inside_.emplace(links_.inside, options_.grid, rank());
  }
  if (links_.pieces) {
    pieces_.emplace(links_.pieces->rank(), links_.pieces->size(), all_gather_over(links_.pieces));
  }
}

HostBackend::~HostBackend() {
  worker_.stop();
  break_off_model();
}

FuturePtr HostBackend::submit(PlacedReduction call) {
  const c10::TypePtr type = call.result.isTensor() ? c10::TypePtr(c10::TensorType::get()) : c10::AnyType::get();
  auto future = c10::make_intrusive<c10::ivalue::Future>(type);
  const auto job = std::make_shared<Job>();
  job->call = std::move(call);
  job->future = future;
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(job);
  }
  // The job keeps the backend alive while it runs, and lets go of it before its Future is done, so that whoever waits
  // for the Future and then drops the engine ends the worker, and not the worker itself.
  const bool accepted = worker_.submit([self = shared_from_this(), job]() mutable {
    self->work_on(job);
    const std::uint64_t line = job->call.line;
    const std::exception_ptr failure = self->failure_of(line);
    const bool is_deferred = !self->deferred_.empty() && self->deferred_.back().job == job;
    if (is_deferred && failure) {  // it gets its error here
      self->deferred_.pop_back();
    }
    const std::vector<JobPtr> finished = std::exchange(self->finished_, {});
    const bool solves_late = !failure && job->sketched != nullptr;
    if (solves_late) {
      self->set_solving_late(true);
    } else {
      self.reset();
    }
    for (const JobPtr& other : finished) {
      complete(*other, nullptr);
    }
    if (is_deferred && !failure) {
      return;
    }
    complete(*job, failure);
    if (solves_late) {
      self->attempt(line, [&] { self->solve(*job); });
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

void HostBackend::complete(Job& job, const std::exception_ptr& failure) {
  // While `result` or the waiting caller still holds them: to drop the last C++ reference to a tensor that Python
  // knows takes the GIL.
  job.call.output.reset();
  job.call.input.reset();
  if (failure) {
    job.future->setError(failure);
  } else {
    job.future->markCompleted(std::move(job.call.result));
  }
}

void HostBackend::work_on(const JobPtr& job) {
  const PlacedReduction& call = job->call;
  {
    const std::lock_guard lock(mutex_);
    waiting_.pop_front();  // this job: the worker takes them in the same order
  }
  if (failure_) {
    return;
  }
  if (call.starts_step()) {
    steps_[call.line] = {};
    steps_[call.line].number = call.step;
    if (call.line == kHookLine) {
      break_off_model();
    }
  }
  if (!failure_of(call.line)) {
    attempt(call.line, [&] { run(job); });
  }
  const bool is_over = call.line != kHookLine && !call.leaves_open;
  if (is_over && !failure_of(call.line)) {
    steps_.erase(call.line);
  }
}

/// Runs a part of a job and keeps what it throws.
void HostBackend::attempt(std::uint64_t line, const std::function<void()>& part) {
  const at::NoGradGuard no_grad;
  try {
    part();
  } catch (const AgreedError&) {  // ranks are still in step
    steps_[line].failure = current_torch_exception();
  } catch (...) {
    failure_ = current_torch_exception();
  }
}

std::exception_ptr HostBackend::failure_of(std::uint64_t line) const {
  const auto step = steps_.find(line);
  return failure_ || step == steps_.end() ? failure_ : step->second.failure;
}

void HostBackend::run(const JobPtr& job) {
  const PlacedReduction& call = job->call;
  // The profiler's name for what is done for a bucket, by its number in reports.
  RECORD_USER_SCOPE(call.operation == Operation::end_of_pass ? std::string("bucket_moo end_of_pass")
                                                             : "bucket_moo bucket " + std::to_string(call.index));
  agree(call);
  if (inside_) {
    inside_->continue_pass(steps_[call.line].inside.at(static_cast<std::size_t>(call.pass)));
  }
  if (call.operation == Operation::end_of_pass) {
    return;
  }
  if (call.output.is_sparse()) {
    reduce_sparse(call);
  } else if (reduces_at_once(call)) {
    reduce_dense(*job);
  } else {
    put_aside(job);
  }
}

/// With the ranks that take part in the reduction.
void HostBackend::agree(const PlacedReduction& call) {
  if (!pieces_) {
    agree_in_group(call);
    return;
  }
  if (!pieces_checked_) {  // behind those of the own group, where they are the same
    pieces_->agree([this] {
      check_configuration();
      return std::uint64_t{0};
    });
    check_same_configuration(pieces_->rank(), pieces_->size(), all_gather_over(links_.pieces),
                             of_whole_model(options_.configuration));
    pieces_checked_ = true;
  }
  pieces_->agree([&] {
    agree_in_group(call);
    return hash_of_call(call);
  });
}

void HostBackend::check_configuration() {
  if (!configuration_checked_) {
    check_same_configuration(rank(), world_size(), all_gather_over(links_.all), options_.configuration);
    configuration_checked_ = true;
  }
}

void HostBackend::agree_in_group(const PlacedReduction& call) {
  check_configuration();
  if (call.starts_pass()) {
    begin_pass(call);
  } else {
    collective_.continue_pass(steps_[call.line].newest_pass);  // another line may have begun one meanwhile
    if (call.is_compared()) {
      read_objectives(gather_records(links_.all.get(), call.record));
    }
  }
}

/// What ranks with other pieces of the model must have alike.
std::uint64_t HostBackend::hash_of_call(const PlacedReduction& call) {
  return bucket_moo::hash_of_call(call, steps_[call.line].said);
}

void HostBackend::begin_pass(const PlacedReduction& call) {
  Step& step = steps_[call.line];
  StepObjectives& objectives = step.objectives;
  RECORD_USER_SCOPE(call.is_alone_in_step() ? "bucket_moo step" : "bucket_moo pass");
  std::vector<StepRecord> records = gather_records(links_.all.get(), call.record);
  step.newest_pass = read_objectives(records);
  step.said.clear();
  for (const StepRecord& record : records) {
    step.said += c10::str(record.objective.text(), " ", std::bit_cast<std::uint64_t>(record.weight), "; ");
  }
  if (options_.layout == Layout::passes) {
    check_one_objective(records);
  }
  if (inside_) {
    step.inside.push_back(inside_->read(records));
    records = inside_->groups(records);
    step.newest_pass = read_objectives(records);
  }
  collective_.continue_pass(step.newest_pass);
  objectives.add_pass(records);
  if (call.totals) {
    check_totals(*call.totals, objectives, call, inside_ ? inside_->size() : 1);
  }
  if (!call.leaves_open) {
    options_.check_objectives(objectives.names());
  }
  if (call.starts_step()) {
    const std::lock_guard lock(mutex_);
    book_.forget_records_of_long_ago(call.step);
  }
}

/// Whether the bucket needs nothing but its own rows of this pass.
bool HostBackend::reduces_at_once(const PlacedReduction& call) const {
  return call.is_alone_in_step() && !(options_.grouping.has_parts() ? spans_buckets(call) : is_of_model(call.line));
}

/// Whether one problem is solved for all buckets of the line.
bool HostBackend::is_of_model(std::uint64_t line) const {
  return options_.grouping.scope() == Scope::model && line == kHookLine;
}

void HostBackend::reduce_dense(Job& job) {
  const PlacedReduction& call = job.call;
  if (options_.grouping.has_parts()) {
    reduce_parts(call);
    return;
  }
  BucketRecord record = record_of(call, options_.sketch);
  record.objectives = collective_.objectives().names;
  if (record.width == 0) {
    record.result = reduce_exact(call);
  } else {
    KeptWeights used = reduce_sketched(job);
    record.solved_step = used.step;
    record.result = std::move(used.solution);
  }
  keep_records(call, {std::move(record)});
}

void HostBackend::keep_records(const PlacedReduction& call, std::vector<BucketRecord> records) {
  const StepObjectives& objectives = steps_[call.line].objectives;
  for (BucketRecord& record : records) {
    record.rows = objectives.rows();
    for (std::int64_t& rows : record.rows) {
      rows *= inside_ ? inside_->size() : 1;
    }
    record.passes = objectives.passes();
  }
  const std::lock_guard lock(mutex_);
  ++counters_.buckets;
  counters_.nonfinite += std::any_of(records.begin(), records.end(), [](const BucketRecord& record) {
    return record.result.solution.status == Status::nonfinite;
  });
  scratch_bytes_ = collective_bytes();
  book_.open(call.bucket).record = BucketRecords{call.step, call.index, std::move(records)};
}

BucketSolution HostBackend::reduce_exact(const PlacedReduction& call) {
  const std::vector<std::string>& objectives = collective_.objectives().names;
  std::vector<double> memory = prepare_method(call.bucket, objectives);
  double* const state = memory.empty() ? nullptr : memory.data();
  sum_inside(call);
  const ShardedBucket bucket = sharded(call, call.tile_limit);
  BucketSolution solution = collective_.reduce(bucket, key_of(call, options_.seed), state);
  gather(call, bucket);
  store_memory(call.bucket, objectives, memory);
  return solution;
}

/// Adds up what the ranks of this one's objective bring; each of them goes on with a part of the sum.
void HostBackend::sum_inside(const PlacedReduction& call) {
  if (!inside_) {
    return;
  }
  void* const output = call.output.mutable_data_ptr();
  const std::int64_t n = call.output.numel();
  if (call.operation == Operation::reduce_scatter) {
    inside_->sum_shards_across(call.input.const_data_ptr(), n, call.dtype());
  } else if (call.operation == Operation::reduce_scatter_inside) {
    inside_->sum_to_shard(output, call.input.const_data_ptr(), n, call.dtype());
  } else {
    inside_->sum_in_place(output, n, call.dtype());
  }
}

/// Makes the result of this rank's shard that of the call.
void HostBackend::gather(const PlacedReduction& call, const ShardedBucket& bucket) {
  if (call.operation == Operation::reduce_scatter) {
    return;
  }
  collective_.all_gather_shards(bucket);
  if (inside_ && !call.scatters()) {
    inside_->gather_in_place(call.output.mutable_data_ptr(), call.output.numel(), call.dtype());
  }
}

RandomKey HostBackend::key_of(const PlacedReduction& call, std::uint64_t seed) {
  return {seed, static_cast<std::uint64_t>(call.step), static_cast<std::uint64_t>(call.index)};
}

/// What of a bucket is reduced across objectives here, behind sum_inside().
ShardedBucket HostBackend::sharded(const PlacedReduction& call, std::int64_t tile_limit) const {
  void* const output = call.output.mutable_data_ptr();
  const std::int64_t n = call.output.numel();
  const int world = collective_.world_size();
  if (call.operation == Operation::reduce_scatter) {
    const void* const input = inside_ ? inside_->summed() : call.input.const_data_ptr();
    return sharded_apart(output, input, n, call.dtype(), world, tile_limit);
  }
  const auto [data, size] = inside_ && !call.scatters() ? inside_->part(output, n, call.dtype())
                                                        : InsideGroup::Part{static_cast<std::byte*>(output), n};
  return sharded_in_place(data, size, call.dtype(), collective_.rank(), world, tile_limit);
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
  const auto meanwhile = [this, &call] { prepare_next(call.line); };
  if (call.scatters()) {
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

/// So that its sketch travels while the call before it, of `line`, still sums. Only in the same step, whose objectives
/// are known.
void HostBackend::prepare_next(std::uint64_t line) {
  std::shared_ptr<Job> next;
  {
    const std::lock_guard lock(mutex_);
    if (!waiting_.empty()) {
      next = waiting_.front();
    }
  }
  if (next != nullptr && next->call.line == line && !next->call.is_compared() && !next->call.output.is_sparse() &&
      options_.sketch.width_for(next->call.gradient().numel()) > 0) {
    prepare(*next);
  }
}

/// Waits for the sketches of the job's bucket, and keeps what it solves for where that is to be used again.
HostBackend::KeptWeights HostBackend::solve(Job& job) {
  const PlacedReduction& call = job.call;
  const std::vector<std::string>& objectives = collective_.objectives().names;
  std::vector<double> memory = prepare_method(call.bucket, objectives);
  const RandomKey key = key_of(call, options_.seed);
  KeptWeights solved{
      objectives, call.step,
      collective_.solve_sketched(std::move(job.sketched), key, memory.empty() ? nullptr : memory.data())};
  store_memory(call.bucket, objectives, memory);
  if (options_.keeps_weights() && solved.solution.solution.status != Status::nonfinite) {
    const std::lock_guard lock(mutex_);
    book_.open(call.bucket).kept = solved;
  }
  return solved;
}

void HostBackend::set_solving_late(bool is_solving) {
  const std::lock_guard lock(mutex_);
  late_solves_ += is_solving ? 1 : -1;
  solved_late_.notify_all();
}

/// Where weights lag, the last solve goes on after its step's Future is done: whoever reads or replaces what solves
/// leave behind waits for it here, so that all ranks see the same.
std::unique_lock<std::mutex> HostBackend::lock_after_late_solve() const {
  std::unique_lock lock(mutex_);
  if (late_solves_ > 0) {
    check_may_wait();
  }
  solved_late_.wait(lock, [this] { return late_solves_ == 0; });
  return lock;
}

/// Empty for methods without a memory.
/// Before a solve for these objectives: puts the preference in their order, and returns what the method remembers.
std::vector<double> HostBackend::prepare_method(const BucketId& bucket, const std::vector<std::string>& objectives) {
  const std::vector<double> preference = options_.method.preference(objectives);
  std::copy(preference.begin(), preference.end(), preference_.begin());
  if (!has_memory(method_)) {
    return {};
  }
  const std::lock_guard lock(mutex_);
  return memory_of(bucket).load(objectives);
}

void HostBackend::store_memory(const BucketId& bucket, const std::vector<std::string>& objectives,
                               const std::vector<double>& values) {
  if (values.empty()) {
    return;
  }
  const std::lock_guard lock(mutex_);
  memory_of(bucket).store(objectives, values);
}

HostBackend::Book& HostBackend::memories() { return options_.grouping.has_parts() ? part_memories_ : book_; }
const HostBackend::Book& HostBackend::memories() const {
  return options_.grouping.has_parts() ? part_memories_ : book_;
}

SolverMemory& HostBackend::memory_of(const BucketId& bucket) {
  std::optional<SolverMemory>& memory = memories().open(bucket).memory;
  return memory ? *memory : memory.emplace(method_);
}

void HostBackend::reduce_sparse(const PlacedReduction& call) {
  reduce_sparse_mean(call.output, rank(), world_size(), tensor_all_gather_over(links_.all));
  if (call.pass > 0 && !call.leaves_open) {  // whose gradient, added up by autograd, is the sum of all passes' means
    call.output._values().mul_(1.0 / (call.pass + 1));
  }
  const std::lock_guard lock(mutex_);
  ++counters_.buckets;
  ++counters_.sparse;
}

std::vector<BucketRecord> HostBackend::records() const {
  const std::lock_guard lock(mutex_);
  std::vector<BucketRecord> last;
  for (const BucketRecords* const bucket : book_.newest_records()) {
    last.insert(last.end(), bucket->parts.begin(), bucket->parts.end());
  }
  return last;
}

Counters HostBackend::counters() const {
  const std::lock_guard lock(mutex_);
  Counters counters = counters_;
  counters.sent_across = links_.across ? links_.across->bytes_sent() : 0;
  counters.sent_inside = links_.inside ? links_.inside->bytes_sent() : 0;
  return counters;
}

std::size_t HostBackend::collective_bytes() const {
  return collective_.scratch_bytes() + combined_.capacity() + (inside_ ? inside_->scratch_bytes() : 0);
}

std::size_t HostBackend::scratch_bytes() const {
  const std::lock_guard lock(mutex_);
  std::size_t bytes = scratch_bytes_;
  book_.for_each_page([&](const Book::Page& page) { bytes += page.aside ? page.aside->bytes : 0; });
  return bytes;
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
  for (const auto& [names, memory] : memories().memories()) {
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
  memories() = std::move(fresh);
  if (options_.grouping.has_parts()) {
    book_ = {};
  }
}

void HostBackend::shutdown() {
  for (const auto& link : {links_.all, links_.across, links_.inside, links_.pieces}) {
    if (link) {
      link->abort();
    }
  }
  worker_.stop();
  break_off_model();
}

}  // namespace bucket_moo
