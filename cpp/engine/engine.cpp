#include "engine/engine.hpp"

#include <c10/util/Exception.h>
#include <c10/util/ScopeExit.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <exception>
#include <optional>
#include <utility>

#include "bucket_moo/objective_table.hpp"
#include "collective/objectives.hpp"
#include "engine/arguments.hpp"
#include "engine/make_backend.hpp"

namespace bucket_moo {
namespace {

/// What a direct call's bucket is known by where its caller gives it no name.
BucketId bucket_of_size(const Reduction& reduction) {
  const char* const operation = reduction.scatters() ? "reduce_scatter" : "all_reduce";
  const std::int64_t numel = reduction.gradient().numel();
  return {{.name = c10::str(operation, "[", numel, "]"), .numel = numel}};
}

void check_name(const std::string& name) {
  TORCH_CHECK_VALUE(!name.empty() && name.size() <= kMaxObjectiveName && name.find('\0') == std::string::npos,
                    "bucket_moo_ext: objective must be 1 to ", kMaxObjectiveName,
                    " bytes of UTF-8 without a zero byte; got ", name.size(), " bytes: '", name, "'");
}

/// The same in whatever order they were given; 0 for none.
std::uint64_t hash_of(const ObjectiveTotals* totals) {
  std::uint64_t hash = 0;
  for (const ObjectiveTotal& total : totals == nullptr ? ObjectiveTotals() : *totals) {
    hash +=
        hash_of(BucketId{{.name = c10::str(total.objective.text(), "=", std::bit_cast<std::uint64_t>(total.total))}});
  }
  return hash;
}

/// As StepRecord::total.
double told_total(const ObjectiveTotals& totals, const ObjectiveName& objective) {
  for (const ObjectiveTotal& total : totals) {
    if (same_name(total.objective, objective)) {
      return total.total;
    }
  }
  return -1.0;
}

ObjectiveTotals checked_totals(const std::vector<std::pair<std::string, double>>& totals) {
  ObjectiveTotals checked;
  for (const auto& [name, total] : totals) {
    check_name(name);
    TORCH_CHECK_VALUE(std::isfinite(total) && total >= 0.0, "bucket_moo_ext: totals must be finite and >= 0; got ",
                      total, " for '", name, "'");
    const ObjectiveName objective = make_objective_name(name);
    for (const ObjectiveTotal& other : checked) {
      TORCH_CHECK_VALUE(!same_name(other.objective, objective), "bucket_moo_ext: totals name '", name, "' twice");
    }
    checked.push_back({objective, total});
  }
  return checked;
}

}  // namespace

Engine::Engine(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device, EngineOptions options,
               c10::intrusive_ptr<c10d::ProcessGroup> pieces)
    : device_(device),
      grid_(options.grid),
      method_(options.method.method().id),
      backend_(make_backend(std::move(group), device, std::move(options), std::move(pieces))),
      objective_(std::to_string(backend_->rank())) {}

void Engine::check_at_home() const {
  TORCH_CHECK(is_at_home(), "bucket_moo_ext: this state was made in process ", home_.pid(), " and reduces there only; ",
              "its threads and connections did not come along when process ", getpid(),
              " was forked. A process that is to reduce needs a process group of its own: start it with "
              "multiprocessing's 'spawn' or 'forkserver'");
}

void Engine::set_objective(std::string name) {
  check_name(name);
  const std::lock_guard lock(mutex_);
  objective_ = std::move(name);
}

void Engine::set_weight(double weight) {
  TORCH_CHECK_VALUE(std::isfinite(weight) && weight >= 0.0, "bucket_moo_ext: weight must be finite and >= 0; got ",
                    weight);
  const std::lock_guard lock(mutex_);
  weight_ = weight;
}

void Engine::set_accumulating(bool is_accumulating, const std::vector<std::pair<std::string, double>>& totals) {
  auto checked = totals.empty() ? nullptr : std::make_shared<const ObjectiveTotals>(checked_totals(totals));
  const std::lock_guard lock(mutex_);
  is_accumulating_ = is_accumulating;
  totals_ = std::move(checked);
}

PassOptions Engine::next_pass() const {
  const std::lock_guard lock(mutex_);
  return {objective_, weight_, is_accumulating_, totals_};
}

void Engine::Step::begin_pass(PassOptions options) {
  if (!is_open()) {
    passes.clear();
    is_given_up = false;
  }
  passes.push_back({std::move(options)});
}

void Engine::begin_pass(PassOptions options) {
  check_at_home();
  const std::lock_guard in_order(order_);
  step_of_hook_.begin_pass(std::move(options));
}

void Engine::check(const Reduction& reduction) {
  check_at_home();
  const std::lock_guard in_order(order_);
  check_or_refuse(step_of_hook_, reduction);
}

void Engine::check_alone(const Reduction& reduction) const {
  check_at_home();
  check_tensors(reduction);
}

FuturePtr Engine::reduce(Reduction reduction, c10::IValue result) {
  check_at_home();
  const std::lock_guard in_order(order_);
  return reduce_next(step_of_hook_, std::move(reduction), std::move(result));
}

void Engine::refuse_reduction() {
  check_at_home();
  const std::lock_guard in_order(order_);
  if (!step_of_hook_.passes.empty() && backend_->tells_refusals()) {
    refuse(step_of_hook_);
  }
}

void Engine::end_pass() {
  check_at_home();
  std::unique_lock in_order(order_);
  const bool closes = !step_of_hook_.is_left_open();
  in_order.unlock();  // Futures may be completed, whose callbacks may reduce
  if (closes) {
    backend_->end_step(kHookLine);
  }
}

FuturePtr Engine::end_compared_pass() {
  check_at_home();
  std::unique_lock in_order(order_);
  const bool closes = !step_of_hook_.is_left_open();
  FuturePtr ended;
  if (backend_->tells_refusals()) {  // first: a step that not all ranks have ended here is not solved for
    ended = place(step_of_hook_, {.operation = Operation::end_of_pass}, true);
  }
  in_order.unlock();  // Futures may be completed, whose callbacks may reduce
  FuturePtr late = closes ? backend_->end_step(kHookLine) : FuturePtr();
  return late ? late : ended;
}

FuturePtr Engine::reduce_alone(Reduction reduction, c10::IValue result) {
  check_at_home();
  const PassOptions options = next_pass();
  const std::lock_guard in_order(order_);
  if (reduction.bucket.empty()) {
    Step unnamed;  // what is refused may have no size to be named by
    unnamed.line = ~kHookLine;
    unnamed.begin_pass(options);
    check_or_refuse(unnamed, reduction);
    reduction.bucket = bucket_of_size(reduction);
  }
  const std::uint64_t line = hash_of(reduction.bucket);
  Step& step = direct_[line];
  step.line = line;
  step.begin_pass(options);
  const auto forget = c10::make_scope_exit([&] {
    if (!step.is_open()) {
      direct_.erase(line);
    }
  });
  FuturePtr done = reduce_next(step, std::move(reduction), std::move(result));
  if (!step.is_open()) {
    backend_->end_step(line);
  }
  return done;
}

int Engine::open_passes() const {
  const std::lock_guard in_order(order_);
  std::size_t passes = step_of_hook_.is_open() ? step_of_hook_.passes.size() : 0;
  for (const auto& [line, step] : direct_) {
    passes += step.passes.size();
  }
  return static_cast<int>(passes);
}

bool Engine::closes_several_passes() const {
  const std::lock_guard in_order(order_);
  return step_of_hook_.passes.size() > 1 && !step_of_hook_.is_left_open();
}

void Engine::discard_open_steps() {
  const std::lock_guard in_order(order_);
  step_of_hook_.is_given_up = true;
  direct_.clear();
}

FuturePtr Engine::reduce_next(Step& step, Reduction reduction, c10::IValue result) {
  check_or_refuse(step, reduction);
  const bool is_first = step.passes.size() == 1;
  backend_->check(reduction, is_first && step.passes.back().reductions == 0, is_first && !step.is_open());
  return place(step, std::move(reduction), std::move(result));
}

void Engine::check_tensors(const Reduction& reduction) const {
  const bool is_inside = reduction.operation == Operation::reduce_scatter_inside;
  check_arguments(reduction, device_, is_inside ? grid_.inside_of(rank()) : rank(),
                  is_inside ? grid_.inside : world_size());
}

/// Other ranks make the first reduction of a pass that is refused here, and hear of it.
void Engine::check_or_refuse(Step& step, const Reduction& reduction) {
  TORCH_CHECK(!step.passes.empty(), "bucket_moo_ext: begin_pass() has to come before the first reduction of a pass");
  try {
    check_tensors(reduction);
  } catch (...) {
    const bool is_compared = step.passes.back().reductions == 0 || reduction.operation != Operation::ddp_bucket;
    if (is_compared && backend_->tells_refusals()) {
      refuse(step);
    }
    throw;
  }
}

void Engine::refuse(Step& step) noexcept {
  try {
    place(step, {.operation = Operation::invalid}, {});
  } catch (const std::exception&) {  // after shutdown() there is nobody to tell; what was refused says more
  }
}

FuturePtr Engine::place(Step& step, Reduction reduction, c10::IValue result) {
  PlacedReduction placed{std::move(reduction)};
  placed.pass = placed.of_pass.value_or(static_cast<int>(step.passes.size()) - 1);
  Step::Pass& pass = step.passes.at(static_cast<std::size_t>(placed.pass));
  placed.line = step.line;
  placed.leaves_open = pass.leaves_open;
  placed.totals = step.passes.front().totals;
  placed.index = pass.reductions++;
  placed.result = result.isNone() ? c10::IValue(placed.output) : std::move(result);
  const bool is_dense = placed.gradient().defined() && !placed.gradient().is_sparse();
  if (placed.starts_step()) {
    const std::lock_guard lock(mutex_);
    step.number = ++step_;
  }
  placed.step = step.number;
  placed.record.objective = make_objective_name(pass.objective);
  placed.record.weight = pass.weight;
  placed.record.step = placed.step;
  placed.record.pass = placed.pass;
  placed.record.leaves_open = placed.leaves_open ? 1 : 0;
  // A sparse bucket holds as many elements as its rank has rows: nothing to compare.
  placed.record.numel = is_dense ? placed.gradient().numel() : 0;
  if (is_dense && placed.tile_limit == 0) {
    placed.tile_limit = static_cast<std::int64_t>(placed.gradient().nbytes());
  }
  placed.record.dtype = static_cast<std::int32_t>(is_dense ? placed.dtype() : DType::float32);
  placed.record.operation = static_cast<std::int32_t>(placed.operation);
  // DDP's parameters may have names on one rank alone: names are for reports there, and DDP compares its modules.
  placed.record.bucket = placed.operation == Operation::ddp_bucket ? 0 : hash_of(placed.bucket);
  placed.record.bucket ^= hash_of(placed.totals.get());
  if (placed.totals) {
    placed.record.told = static_cast<std::int32_t>(placed.totals->size());
    placed.record.total = told_total(*placed.totals, placed.record.objective);
  }
  return backend_->submit(std::move(placed));
}

std::int64_t Engine::step() const {
  if (const std::optional<std::int64_t> counted = backend_->counted_steps()) {
    return *counted;
  }
  const std::lock_guard lock(mutex_);
  return step_;
}

void Engine::set_step(std::int64_t step) {
  TORCH_CHECK_VALUE(step >= 0, "bucket_moo_ext: step must be >= 0; got ", step);
  {
    const std::lock_guard lock(mutex_);
    step_ = step;
  }
  backend_->continue_from(step);
}

}  // namespace bucket_moo
