#include "hooks/host_state.hpp"

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/jit_type.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "collective/dtype.hpp"
#include "hooks/sparse_mean.hpp"

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
  // The job keeps the state alive while it runs, and lets go of it before its Future is done, so that whoever waits for
  // the Future and then drops the state ends the worker, and not the worker itself.
  const bool accepted = worker_.submit(
      [self = std::static_pointer_cast<HostState>(shared_from_this()), call = std::move(call), future]() mutable {
        self->run_step_of(call);
        const std::exception_ptr failure = self->failure_ ? self->failure_ : self->step_failure_;
        self.reset();
        // While `result` or the waiting caller still holds them: to drop the last C++ reference to a tensor that Python knows
        // takes the GIL.
        call.output.reset();
        call.input.reset();
        if (failure) {
          future->setError(failure);
        } else {
          future->markCompleted(std::move(call.result));
        }
      });
  TORCH_CHECK(accepted, "bucket_moo_ext: this state was shut down; make a new one");
  return future;
}

/// Tells the other ranks, which make a call of their own, that this one refused its arguments: they raise too instead of
/// waiting for it.
void HostState::refuse() {
  Call call;
  call.operation = Operation::invalid;
  call.starts_step = true;
  submit(std::move(call));
}

void HostState::run_step_of(const Call& call) {
  if (failure_) {
    return;
  }
  if (call.starts_step) {
    step_failure_ = nullptr;
  }
  if (step_failure_) {
    return;
  }
  try {
    run(call);
  } catch (const c10::ValueError&) {  // raised alike on every rank, before the step's first bucket
    step_failure_ = std::current_exception();
  } catch (...) {
    failure_ = std::current_exception();
  }
}

void HostState::run(const Call& call) {
  const at::NoGradGuard no_grad;
  if (!configuration_checked_) {
    check_same_configuration(
        rank(), world_size(), [this](std::byte* blocks, std::size_t bytes) { all_gather(blocks, bytes); },
        configuration());
    configuration_checked_ = true;
  }
  if (call.starts_step) {
    collective_.begin_step(call.record);
    method().check(collective_.objectives().k());
    const std::lock_guard lock(mutex());
    // Buckets that this step does not have any more (DDP rebuilt them) must not linger in the report.
    std::erase_if(records_, [&](const auto& item) { return item.second.step + 1 < call.record.step; });
  }
  if (call.output.is_sparse()) {
    reduce_sparse(call);
  } else {
    reduce_dense(call);
  }
}

void HostState::reduce_dense(const Call& call) {
  const DType dtype = dtype_of(call.output.scalar_type(), "a bucket");
  const RandomKey key{seed(), static_cast<std::uint64_t>(call.step), static_cast<std::uint64_t>(call.index)};
  BucketRecord record;
  record.step = call.step;
  record.index = call.index;
  record.parameters = call.parameters;
  record.dtype = dtype;
  record.objectives = collective_.objectives().names;
  record.numel = call.bucket().numel();
  std::vector<double> state = load_state(call);
  record.result = reduce_with(call, dtype, key, state.empty() ? nullptr : state.data());
  store_state(call, state);
  const std::lock_guard lock(mutex());
  ++counters_.buckets;
  counters_.nonfinite += record.result.solution.status == Status::nonfinite;
  scratch_bytes_ = collective_.scratch_bytes();
  records_[call.key] = std::move(record);
}

BucketSolution HostState::reduce_with(const Call& call, DType dtype, const RandomKey& key, double* state) {
  void* const output = call.output.mutable_data_ptr();
  const std::int64_t n = call.output.numel();
  if (call.operation == Operation::reduce_scatter) {
    return collective_.reduce_scatter(output, call.input.const_data_ptr(), n, dtype, key, call.tile_limit, state);
  }
  return collective_.all_reduce(output, n, dtype, key, call.tile_limit, state);
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

void HostState::all_gather(std::byte* blocks, std::size_t bytes) {
  if (transport_) {
    transport_->all_gather(blocks, bytes);
  }
}

void HostState::reduce_sparse(const Call& call) {
  reduce_sparse_mean(call.output, rank(), world_size(), [this](const at::Tensor& blocks) {
    all_gather(static_cast<std::byte*>(blocks.mutable_data_ptr()),
               blocks.nbytes() / static_cast<std::size_t>(world_size()));
  });
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
  const std::lock_guard lock(mutex());
  records_.clear();  // those of steps that have not been, seen from here
}

void HostState::check_may_wait() const {
  TORCH_CHECK(!worker_.is_this_thread(),
              "bucket_moo_ext: a blocking call from a callback of this state's own Future would wait for itself; use "
              "async_op=True there");
}

std::vector<SavedSolverState> HostState::solver_states() const {
  const std::lock_guard lock(mutex());
  return solver_states_.save();
}

void HostState::set_solver_states(const std::vector<SavedSolverState>& saved) {
  const std::lock_guard lock(mutex());
  solver_states_.restore(saved);
}

void HostState::shutdown() {
  if (transport_) {
    transport_->abort();
  }
  worker_.stop();
}

}  // namespace bucket_moo
