#include "engine/engine.hpp"

#include <c10/util/Exception.h>
#include <c10/util/ScopeExit.h>
#include <unistd.h>

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
  const char* const operation = reduction.operation == Operation::reduce_scatter ? "reduce_scatter" : "all_reduce";
  const std::int64_t numel = reduction.gradient().numel();
  return {{.name = c10::str(operation, "[", numel, "]"), .numel = numel}};
}

}  // namespace

Engine::Engine(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device, EngineOptions options)
    : device_(device),
      method_(options.method.method().id),
      backend_(make_backend(std::move(group), device, std::move(options))),
      objective_(std::to_string(backend_->rank())) {}

void Engine::check_at_home() const {
  TORCH_CHECK(is_at_home(), "bucket_moo_ext: this state was made in process ", home_.pid(), " and reduces there only; ",
              "its threads and connections did not come along when process ", getpid(),
              " was forked. A process that is to reduce needs a process group of its own: start it with "
              "multiprocessing's 'spawn' or 'forkserver'");
}

void Engine::set_objective(std::string name) {
  TORCH_CHECK_VALUE(!name.empty() && name.size() <= kMaxObjectiveName && name.find('\0') == std::string::npos,
                    "bucket_moo_ext: objective must be 1 to ", kMaxObjectiveName,
                    " bytes of UTF-8 without a zero byte; got ", name.size(), " bytes: '", name, "'");
  const std::lock_guard lock(mutex_);
  objective_ = std::move(name);
}

void Engine::set_weight(double weight) {
  TORCH_CHECK_VALUE(std::isfinite(weight) && weight >= 0.0, "bucket_moo_ext: weight must be finite and >= 0; got ",
                    weight);
  const std::lock_guard lock(mutex_);
  weight_ = weight;
}

void Engine::begin_step() {
  check_at_home();
  const std::lock_guard in_order(order_);
  reductions_ = 0;
}

void Engine::check(const Reduction& reduction) {
  check_at_home();
  const std::lock_guard in_order(order_);
  check_or_refuse(reduction);
}

FuturePtr Engine::reduce(Reduction reduction, c10::IValue result) {
  check_at_home();
  const std::lock_guard in_order(order_);
  return reduce_next(std::move(reduction), std::move(result));
}

void Engine::end_step() {
  check_at_home();
  const std::lock_guard in_order(order_);
  backend_->end_step();
}

FuturePtr Engine::reduce_alone(Reduction reduction, c10::IValue result) {
  check_at_home();
  const std::lock_guard in_order(order_);
  // A backward pass whose buckets this call comes between goes on where it was.
  const auto restore = c10::make_scope_exit([this, before = reductions_] { reductions_ = before; });
  reductions_ = 0;
  FuturePtr done = reduce_next(std::move(reduction), std::move(result));
  backend_->end_step();
  return done;
}

FuturePtr Engine::reduce_next(Reduction reduction, c10::IValue result) {
  check_or_refuse(reduction);
  if (reduction.bucket.empty()) {
    reduction.bucket = bucket_of_size(reduction);
  }
  backend_->check(reduction, reductions_ == 0);
  return place(std::move(reduction), std::move(result));
}

/// Other ranks make the first reduction of a step that is refused here, and hear of it.
void Engine::check_or_refuse(const Reduction& reduction) {
  try {
    check_arguments(reduction, device_, rank(), world_size());
  } catch (...) {
    if (reductions_ == 0 && backend_->tells_refusals()) {
      refuse();
    }
    throw;
  }
}

void Engine::refuse() noexcept {
  try {
    place({.operation = Operation::invalid}, {});
  } catch (const std::exception&) {  // after shutdown() there is nobody to tell; what was refused says more
  }
}

FuturePtr Engine::place(Reduction reduction, c10::IValue result) {
  PlacedReduction placed{std::move(reduction)};
  placed.index = reductions_++;
  placed.result = result.isNone() ? c10::IValue(placed.output) : std::move(result);
  const bool is_dense = placed.operation != Operation::invalid && !placed.gradient().is_sparse();
  {
    const std::lock_guard lock(mutex_);
    step_ += placed.starts_step();
    placed.step = step_;
    placed.record.objective = make_objective_name(objective_);
    placed.record.weight = weight_;
  }
  placed.record.step = placed.step;
  // A sparse bucket holds as many elements as its rank has rows: nothing to compare.
  placed.record.numel = is_dense ? placed.gradient().numel() : 0;
  if (is_dense && placed.tile_limit == 0) {
    placed.tile_limit = static_cast<std::int64_t>(placed.gradient().nbytes());
  }
  placed.record.dtype = static_cast<std::int32_t>(is_dense ? placed.dtype() : DType::float32);
  placed.record.operation = static_cast<std::int32_t>(placed.operation);
  // DDP's parameters may have names on one rank alone: names are for reports there, and DDP compares its modules.
  placed.record.bucket = placed.operation == Operation::ddp_bucket ? 0 : hash_of(placed.bucket);
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
