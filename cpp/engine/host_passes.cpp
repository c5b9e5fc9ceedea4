// HostBackend's part for buckets that are put aside: steps of several passes, and weights of the whole model.
#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/jit_type.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <utility>

#include "engine/host_backend.hpp"
#include "engine/step_totals.hpp"
#include "engine/weight_schedule.hpp"
#include "torch_types/dtype.hpp"

namespace bucket_moo {
namespace {

/// What weights and memory of a method are known by where one problem is solved for all buckets.
const BucketId kModel{{.name = "model:"}};

/// Weights beyond are multiplied in float64, which a float32 sum of several passes cannot be added up in.
constexpr double kLargestFactor = 0x1p60;

/// Where each of `names` is in `of`; empty if they are not the same objectives.
std::vector<std::size_t> places(const std::vector<std::string>& names, const std::vector<std::string>& of) {
  std::vector<std::size_t> place;
  for (const std::string& name : names) {
    const auto found = std::find(of.begin(), of.end(), name);
    if (found != of.end()) {
      place.push_back(static_cast<std::size_t>(found - of.begin()));
    }
  }
  return place.size() == of.size() && names.size() == of.size() ? place : std::vector<std::size_t>();
}

bool may_be_factors(const std::vector<double>& weights) {
  return std::all_of(weights.begin(), weights.end(), [](double weight) {
    const double size = std::fabs(weight);
    return size == 0.0 || (size >= 1.0 / kLargestFactor && size <= kLargestFactor);
  });
}

}  // namespace

/// Adds the bucket's rows to those of the passes before. In the last pass the result comes back; else zeros do.
void HostBackend::put_aside(const JobPtr& job) {
  const PlacedReduction& call = job->call;
  std::shared_ptr<PutAside> aside;
  if (pieces_) {  // which may have other sizes
    pieces_->agree([&] {
      aside = aside_of(call);
      return std::uint64_t{0};
    });
  } else {
    aside = aside_of(call);
  }
  Closed bucket{job, std::move(aside), {}, {}};
  add_rows(call, bucket.aside->tile);
  note_memory(*bucket.aside);
  if (call.leaves_open) {
    std::memset(call.output.mutable_data_ptr(), 0, call.output.nbytes());
    return;
  }
  bucket.aside->is_open = false;
  if (call.is_late) {
    bucket.job = late_part(call, bucket.aside->tile);
  }
  if (options_.grouping.has_parts()) {
    close_parts(std::move(bucket));
  } else {
    close(std::move(bucket));
  }
}

/// What is still to be done of a call whose Future does not wait for it.
HostBackend::JobPtr HostBackend::late_part(const PlacedReduction& call, const HostRows& rows) {
  const auto late = std::make_shared<Job>();
  late->call = call;
  late->future = c10::make_intrusive<c10::ivalue::Future>(c10::AnyType::get());
  if (call.scatters() && !(rows.width > 0 && call.is_alone_in_step())) {  // its row is put aside, in shards
    late->call.input = at::empty_like(call.input, call.input.options().device(at::kMeta));
  }
  return late;
}

std::shared_ptr<HostBackend::PutAside> HostBackend::aside_of(const PlacedReduction& call) {
  bool is_new = false;
  std::shared_ptr<PutAside> aside;
  {
    const std::lock_guard lock(mutex_);
    aside = open_aside(
        book_, call, [] { return HostRows(); }, [&](HostRows&) { is_new = true; },
        [&](HostRows& rows) {
          const at::Tensor& gradient = call.gradient();
          return rows.width > 0 ? rows.tile.fits(collective_.sketch_columns(call.dtype(), rows.width)) &&
                                      (call.is_alone_in_step() || rows.own.fits(gradient.numel(), call.dtype()))
                                : rows.tile.fits(sharded(call));
        });
  }
  if (is_new) {
    begin_rows(call, aside->tile);
  }
  return aside;
}

/// For a step that begins for this bucket.
void HostBackend::begin_rows(const PlacedReduction& call, HostRows& rows) {
  const std::int64_t n = call.gradient().numel();
  rows.width = options_.sketch.width_for(n);
  rows.index = call.index;
  rows.takes_sketches = true;
  rows.known.reset();
  rows.tile.begin(rows.width > 0 ? collective_.sketch_columns(call.dtype(), rows.width) : sharded(call));
  if (rows.width == 0) {
    return;
  }
  if (call.is_alone_in_step()) {  // the bucket itself holds the row
    rows.takes_sketches = source_of(call, rows.width, steps_[call.line].objectives.names()).solves;
    return;
  }
  if (call.totals) {
    WeightSource source = source_of(call, rows.width, names_of(*call.totals));
    if (source.kept && may_be_factors(source.kept->solution.weights)) {
      rows.known = std::move(source.kept);
      rows.takes_sketches = source.solves;
    }
  }
  rows.own.begin(n, call.dtype(), rows.known.has_value());
}

void HostBackend::add_rows(const PlacedReduction& call, HostRows& rows) {
  const PassRows& pass = steps_[call.line].objectives.pass(call.pass);
  if (rows.width == 0) {
    sum_inside(call);
    const ShardedBucket bucket = sharded(call);  // now that there is a sum
    const Sections sections =
        options_.grouping.has_parts() ? sections_of(call, bucket) : one_part(bucket.shard_size, bucket.tail_size);
    collective_.accumulate(bucket, pass, sections, rows.tile);
    return;
  }
  const void* const row = call.gradient().const_data_ptr();
  if (rows.takes_sketches) {
    const RandomKey key{options_.sketch.seed, static_cast<std::uint64_t>(call.step),
                        static_cast<std::uint64_t>(rows.index)};
    collective_.accumulate_sketch(row, call.gradient().numel(), call.dtype(), key, rows.width, pass, rows.tile);
  }
  if (call.is_alone_in_step()) {
    return;
  }
  if (!rows.known) {
    rows.own.add(row, pass, rank());
  } else if (pass.coefficient[static_cast<std::size_t>(rank())] > 0.0) {
    rows.own.add_to_one(row, coefficient_of(call, *rows.known));
  }
}

/// What this rank's row of the pass counts for in the step's result.
double HostBackend::coefficient_of(const PlacedReduction& call, const KeptWeights& known) const {
  const StepObjectives& objectives = steps_.at(call.line).objectives;
  const PassRows& pass = objectives.pass(call.pass);
  const auto r = static_cast<std::size_t>(rank());
  const auto k = static_cast<std::size_t>(pass.objective[r]);
  const std::string& name = objectives.names()[k];
  const auto place = std::find(known.objectives.begin(), known.objectives.end(), name) - known.objectives.begin();
  const double share = pass.coefficient[r] * (pass.unit[k] / total_of(*call.totals, name));
  return known.solution.weights[static_cast<std::size_t>(place)] * share;
}

void HostBackend::note_memory(PutAside& aside) {
  const std::lock_guard lock(mutex_);
  aside.bytes = aside.tile.tile.capacity() + aside.tile.own.capacity();
  scratch_bytes_ = collective_bytes();
}

/// `names`: the objectives of the step, in any order. The same in all passes of a step.
HostBackend::WeightSource HostBackend::source_of(const PlacedReduction& call, std::int64_t width,
                                                 const std::vector<std::string>& names) const {
  if (!options_.keeps_weights() || (width == 0 && !is_of_model(call.line))) {
    return {};
  }
  WeightSource source;
  bool is_first = true;
  {
    const std::lock_guard lock(mutex_);
    const Book::Page* const page = book_.find(is_of_model(call.line) ? kModel : call.bucket);
    is_first = page == nullptr || !page->kept;
    if (!is_first && !places(names, page->kept->objectives).empty()) {
      source.kept = page->kept;
    }
  }
  const auto solved = source.kept ? std::optional(source.kept->step) : std::nullopt;
  const WeightPlan plan = plan_weights(options_.schedule, call.step, solved);
  source.solves = plan.solves;
  if (!plan.uses_kept) {
    source.kept.reset();
  }
  if (is_first && options_.schedule.lag && call.totals) {  // so that training need not begin with rows kept apart
    KeptWeights mean{names, 0, {}};
    mean.solution.weights.assign(names.size(), 1.0 / static_cast<double>(names.size()));
    source.kept = std::move(mean);
  }
  return source;
}

/// The rows are complete: combines them, or leaves that to solve_model().
void HostBackend::close(Closed bucket) {
  const PlacedReduction& call = bucket.job->call;
  const HostRows& rows = bucket.aside->tile;
  const StepObjectives& objectives = steps_[call.line].objectives;
  if (rows.takes_sketches) {
    bucket.gramian = collective_.exchange_gramian(bucket.aside->tile.tile, objectives);
  }
  const WeightSource source = source_of(call, rows.width, objectives.names());
  const bool is_of_model = this->is_of_model(call.line);
  if (is_of_model && source.solves) {
    model_.push_back({call.bucket, key_of(call, options_.seed), call.step, bucket.gramian.solution});
  }
  if (source.kept) {
    combine(bucket, *source.kept, false);
  } else if (is_of_model) {
    deferred_.push_back(std::move(bucket));
    return;
  }
  if (!is_of_model && source.solves) {
    const KeptWeights solved =
        solve_step(call.bucket, key_of(call, options_.seed), call.line, call.step, std::move(bucket.gramian.solution));
    bucket.gramian.solution = solved.solution;
    if (rows.width > 0) {
      keep_weights(call.bucket, solved);
    }
    if (!source.kept) {
      combine(bucket, solved, true);
    }
  }
}

/// `problem`: its Gramian.
HostBackend::KeptWeights HostBackend::solve_step(const BucketId& owner, const RandomKey& key, std::uint64_t line,
                                                 std::int64_t step, BucketSolution problem) {
  const std::vector<std::string>& objectives = steps_[line].objectives.names();
  std::vector<double> memory = prepare_method(owner, objectives);
  collective_.solve(key, memory.empty() ? nullptr : memory.data(), problem);
  store_memory(owner, objectives, memory);
  return {objectives, step, std::move(problem)};
}

/// Writes the result of a bucket to where its gradient was.
void HostBackend::combine(const Closed& bucket, const KeptWeights& used, bool is_fresh) {
  const PlacedReduction& call = bucket.job->call;
  HostRows& rows = bucket.aside->tile;
  BucketRecord record = record_of(call, options_.sketch);
  record.group = is_of_model(call.line) ? "model" : "";
  record.objectives = steps_[call.line].objectives.names();
  record.result = result_of(bucket, used, is_fresh);
  record.solved_step = used.step > 0 ? used.step : call.step;
  const std::vector<double>& weights = record.result.weights;
  // NaN and Inf were seen when fresh weights were solved for. Kept ones know nothing of this step's gradients.
  const ZeroRows zero_rows = is_fresh ? ZeroRows::skip : ZeroRows::read;
  const bool scatters = call.operation == Operation::reduce_scatter;
  void* const output = call.output.mutable_data_ptr();
  const std::int64_t n = call.output.numel();
  if (rows.width == 0) {
    const ShardedBucket where = sharded(call);
    collective_.combine_tile(rows.tile, bucket.gramian.shares, weights, zero_rows, where);
    gather(call, where);
  } else if (call.is_alone_in_step()) {
    if (scatters) {
      collective_.weighted_reduce_scatter(output, call.input.const_data_ptr(), n, call.dtype(), weights, zero_rows);
    } else {
      collective_.weighted_all_reduce(output, n, call.dtype(), weights, zero_rows);
    }
  } else {
    void* const sum = scatters ? combined_.reserve(call.input.nbytes()) : output;
    rows.own.combine(steps_[call.line].objectives, weights, zero_rows, sum);
    if (scatters) {
      collective_.sum_reduce_scatter(output, sum, n, call.dtype());
    } else {
      collective_.sum_all_reduce(output, n, call.dtype());
    }
  }
  note_memory(*bucket.aside);
  keep_records(call, {std::move(record)});
}

/// What reports are to say of a bucket, in the step's order of objectives: the weights that it used, and the Gramian of
/// the step that these are from.
BucketSolution HostBackend::result_of(const Closed& bucket, const KeptWeights& used, bool is_fresh) const {
  const PlacedReduction& call = bucket.job->call;
  const std::vector<std::string>& names = steps_.at(call.line).objectives.names();
  const std::size_t k = names.size();
  BucketSolution result{{}, {}, used.solution.solution, {}};
  std::vector<std::size_t> place = places(names, used.objectives);
  for (const std::size_t i : place) {
    result.weights.push_back(used.solution.weights[i]);
  }
  if (is_fresh || used.step == 0) {  // of this step
    result.gramian = bucket.gramian.solution.gramian;
    result.norms = bucket.gramian.solution.norms;
    return result;
  }
  const std::lock_guard lock(mutex_);
  const Book::Page* const page = book_.find(call.bucket);
  result.gramian.assign(k * k, 0.0);
  if (page != nullptr && page->kept && page->kept->step == used.step) {  // else it was not there yet
    place = places(names, page->kept->objectives);
    for (std::size_t i = 0; i < k * k; ++i) {
      result.gramian[i] = page->kept->solution.gramian[place[i / k] * k + place[i % k]];
    }
    const RowNorms& norms = page->kept->solution.norms;
    for (std::size_t i = 0; i < k && !norms.squares.empty(); ++i) {
      result.norms.squares.push_back(norms.squares[place[i]]);
      result.norms.shares.push_back(norms.shares[place[i]]);
    }
  }
  return result;
}

FuturePtr HostBackend::end_step(std::uint64_t line) {
  if (line != kHookLine || (options_.grouping.scope() != Scope::model && options_.grouping.scope() != Scope::groups)) {
    return {};
  }
  set_solving_late(true);
  auto ended = c10::make_intrusive<c10::ivalue::Future>(c10::AnyType::get());
  const bool accepted = worker_.submit([self = shared_from_this(), ended]() mutable {
    if (!self->failure_of(kHookLine)) {
      if (!self->model_.empty()) {
        self->attempt(kHookLine, [&] { self->solve_model(); });
      } else if (!self->deferred_.empty() && self->options_.grouping.has_parts()) {
        self->attempt(kHookLine, [&] { self->finish_parts(); });
      }
    }
    const std::exception_ptr failure = self->failure_of(kHookLine);
    const std::vector<Closed> done = std::exchange(self->deferred_, {});
    const std::vector<JobPtr> finished = std::exchange(self->finished_, {});  // among them none that failed
    self->model_.clear();
    self->set_solving_late(false);
    self.reset();
    for (const JobPtr& job : finished) {
      complete(*job, nullptr);
    }
    for (const Closed& bucket : done) {
      complete(*bucket.job, failure);
    }
    if (failure) {
      ended->setError(failure);
    } else {
      ended->markCompleted(true);
    }
  });
  if (!accepted) {
    set_solving_late(false);
  }
  return accepted ? ended : FuturePtr();
}

/// One problem for all buckets: their Gramians add up.
void HostBackend::solve_model() {
  const Step& step = steps_[kHookLine];
  collective_.continue_pass(step.newest_pass);  // another line may have begun one meanwhile
  BucketSolution model{model_.front().of_bucket.gramian, std::vector<double>(step.objectives.names().size()), {}, {}};
  for (std::size_t b = 1; b < model_.size(); ++b) {
    const std::vector<double>& gramian = model_[b].of_bucket.gramian;
    std::transform(gramian.begin(), gramian.end(), model.gramian.begin(), model.gramian.begin(), std::plus<>());
  }
  const KeptWeights solved = solve_step(kModel, model_.front().key, kHookLine, model_.front().step, std::move(model));
  if (options_.keeps_weights()) {
    keep_weights(kModel, solved);
    for (ModelPart& part : model_) {
      KeptWeights of_bucket = solved;
      of_bucket.solution.gramian = std::move(part.of_bucket.gramian);
      of_bucket.solution.norms = std::move(part.of_bucket.norms);
      keep_weights(part.bucket, of_bucket);
    }
  }
  for (const Closed& bucket : deferred_) {
    combine(bucket, solved, true);
  }
}

void HostBackend::keep_weights(const BucketId& bucket, const KeptWeights& solved) {
  if (options_.keeps_weights() && solved.solution.solution.status != Status::nonfinite) {
    const std::lock_guard lock(mutex_);
    book_.open(bucket).kept = solved;
  }
}

/// Of a step that did not come to its end.
void HostBackend::break_off_model() {
  model_.clear();
  for (const Closed& bucket : std::exchange(deferred_, {})) {
    complete(*bucket.job, broken_off());
  }
}

}  // namespace bucket_moo
