#include "hooks/device_state.hpp"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/jit_type.h>
#include <c10/core/StreamGuard.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "bucket_moo/state_layout.hpp"
#include "collective/agreed_error.hpp"
#include "hooks/sparse_mean.hpp"
#include "nvtx_range.cuh"
#include "torch_types/device.hpp"
#include "torch_types/dtype.hpp"

namespace bucket_moo {
namespace {

/// Makes device and side stream current, for its scope.
class OnSideStream {
 public:
  OnSideStream(c10::Device device, const SideStream& side) : device_(device), stream_(side.stream()) {}

 private:
  KernelDeviceGuard device_;
  c10::StreamGuard stream_;
};

template <class T>
at::Tensor upload(const std::vector<T>& values, c10::ScalarType type, c10::Device device) {
  return values.empty() ? at::Tensor() : at::tensor(values, type).to(device);
}

}  // namespace

DeviceState::DeviceMethod::DeviceMethod(const MethodConfig& config, c10::Device device)
    : preference(upload(config.preference(), at::kDouble, device)),
      permutation(upload(config.permutation(), at::kInt, device)),
      method(config.method(preference.defined() ? preference.const_data_ptr<double>() : nullptr,
                           permutation.defined() ? permutation.const_data_ptr<int>() : nullptr)) {}

DeviceState::DeviceState(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device, StateOptions options)
    : BucketMooState(std::move(options), device, group ? group->getRank() : 0),
      side_(device),
      method_([&] {
        const OnSideStream guard(device, side_);
        return DeviceMethod(method(), device);
      }()),
      collective_([&] {  // whose memory is the side stream's
        const OnSideStream guard(device, side_);
        return DeviceCollective(std::move(group), device, method_.method, method().expected_objectives(), seed(),
                                sketch(), keeps_weights());
      }()),
      sketches_{DeviceBuffer(device)} {}

FuturePtr DeviceState::submit(Call call) {
  TORCH_CHECK(!shut_down_, "bucket_moo_ext: this state was shut down; make a new one");
  const std::lock_guard in_order(enqueue_);
  if (failure_) {
    std::rethrow_exception(failure_);
  }
  check_capture(call);  // before anything is enqueued: what it refuses does no harm
  try {
    return enqueue(call);
  } catch (const AgreedError&) {
    throw;
  } catch (...) {  // ranks are out of step
    failure_ = std::current_exception();
    throw;
  }
}

FuturePtr DeviceState::enqueue(Call& call) {
  const at::NoGradGuard no_grad;
  const cuda::NvtxRange range("bucket_moo bucket");
  side_.follow_current();
  const OnSideStream guard(device(), side_);
  record_streams(call);
  collective_.step().check_past_steps();
  stamp(call);
  if (!collective_.is_reserved()) {
    agree_on_first_step(call);
  }
  if (call.starts_step) {
    solve_late();  // of a step that did not come to its last bucket
    collective_.step().begin(call.record);
    if (!captured_) {
      std::erase_if(records_, [&](const auto& item) { return item.second.fields.step + 1 < call.step; });
    }
  }
  if (call.output.is_sparse()) {
    reduce_sparse(call);
  } else {
    reduce_dense(call);
  }
  FuturePtr done = complete(call);
  if (call.ends_step) {
    solve_late();
  }
  return done;
}

/// Refuses to capture what has not been reduced before: its memory would be the graph's.
void DeviceState::check_capture(const Call& call) {
  const KernelDeviceGuard guard(device());
  if (!is_capturing(current_stream(device()))) {
    return;
  }
  TORCH_CHECK(!keeps_weights(), "bucket_moo_ext: a Sketch with refresh_every > 1 or lag=1 cannot be captured ",
              "in a graph: which steps solve is decided on the host, and a late solve goes on behind the graph's end");
  TORCH_CHECK(collective_.is_reserved(), "bucket_moo_ext: run at least one backward pass before capturing a graph");
  const auto found = records_.find(call.key);
  TORCH_CHECK(!call.output.is_sparse() && found != records_.end() &&
                  found->second.fields.numel == call.bucket().numel() &&
                  found->second.fields.dtype == dtype_of(call.bucket().scalar_type(), "a bucket"),
              "bucket_moo_ext: reduce the same buckets once more before capturing a graph; one of ",
              call.bucket().numel(), " elements is not known yet");
  captured_ = true;
  collective_.keep_memory();
  sketches_.memory.keep_all();
}

/// The caller may drop its tensors before the side stream has come to them.
void DeviceState::record_streams(const Call& call) const {
  if (!device().is_cuda()) {
    return;
  }
  const bool sparse = call.output.is_sparse();
  for (const at::Tensor& used :
       {sparse ? call.output._values() : call.output, sparse ? call.output._indices() : at::Tensor(), call.input}) {
    if (used.defined()) {
      used.record_stream(side_.stream());
    }
  }
}

/// The first reduction: ranks compare what they were given while there is still a host to raise on.
void DeviceState::agree_on_first_step(const Call& call) {
  check_same_configuration(
      rank(), world_size(), [this](const at::Tensor& blocks) { collective_.exchange().all_gather_host(blocks); },
      configuration());
  const int k = collective_.step().agree_on_objectives(call.record).k();
  check_method_fits(k);
  collective_.reserve_for(k);
  collective_.step().continue_from(call.step - 1);
}

void DeviceState::reduce_dense(const Call& call) {
  auto found = records_.find(call.key);
  if (found == records_.end()) {
    found = records_.emplace(call.key, DeviceRecord{{}, collective_.make_result()}).first;
  }
  DeviceRecord& record = found->second;
  record.fields.step = call.step;
  record.fields.index = call.index;
  record.fields.parameters = call.parameters;
  record.fields.numel = call.bucket().numel();
  record.fields.dtype = dtype_of(call.output.scalar_type(), "a bucket");
  record.fields.width = sketch().width_for(record.fields.numel);
  if (record.fields.width > 0) {
    reduce_sketched(call, record.result);
    return;
  }
  const DeviceSolverState* const state = state_of(call.state_key);
  if (call.operation == Operation::reduce_scatter) {
    collective_.reduce_scatter(call.output, call.input, call.index, call.tile_limit, record.result, state);
  } else {
    collective_.all_reduce(call.output, call.index, call.tile_limit, record.result, state);
  }
}

void DeviceState::reduce_sketched(const Call& call, const DeviceResult& result) {
  const at::Tensor& bucket = call.bucket();
  DeviceKept* const kept = kept_weights_.find(call.state_key);
  const bool is_due_now = kept == nullptr || is_due(call.step, kept->step, schedule().refresh_every);
  const bool uses_kept = kept != nullptr && (schedule().lag || !is_due_now);
  if (is_due_now) {
    collective_.start_sketch(bucket, call.index, sketch().width_for(bucket.numel()),
                             uses_kept ? kept->sketches : sketches_);
  }
  if (uses_kept) {
    collective_.use_kept_weights(kept->result, result);
    if (is_due_now) {
      late_.push_back({call.state_key, call.index, call.step});
    }
  } else {
    collective_.solve_sketched(sketches_, call.index, result, state_of(call.state_key), /*counted=*/true);
    if (keeps_weights()) {
      keep(call.state_key, call.step, result);
    }
  }
  if (call.operation == Operation::reduce_scatter) {
    collective_.weighted_reduce_scatter(call.output, call.input);
  } else {
    collective_.weighted_all_reduce(call.output);
  }
}

/// Behind the step's last Future: nothing of this step waits for it, not on the stream either.
void DeviceState::solve_late() {
  if (!late_.empty() && !late_result_) {
    late_result_ = collective_.make_result();
  }
  for (const LateSolve& late : late_) {
    const DeviceKept* const kept = kept_weights_.find(late.state_key);
    collective_.solve_sketched(kept->sketches, late.index, *late_result_, state_of(late.state_key), /*counted=*/false);
    keep(late.state_key, late.step, *late_result_);
  }
  late_.clear();
}

void DeviceState::keep(const std::vector<BucketParameter>& state_key, std::int64_t step, const DeviceResult& solved) {
  DeviceKept* kept = kept_weights_.find(state_key);
  if (kept == nullptr) {
    kept = &kept_weights_.keep(state_key, {collective_.make_result(), {DeviceBuffer(device())}});
  }
  kept->step = step;
  collective_.keep_weights(solved, kept->result);
}

void DeviceState::reduce_sparse(const Call& call) {
  reduce_sparse_mean(call.output, rank(), world_size(), [this](const at::Tensor& blocks) {
    collective_.exchange().all_gather(blocks.view({-1}).view(at::kByte));
  });
  ++sparse_;
}

bool DeviceState::has_memory() const { return state_size(method_.method, 1) > 0; }

const DeviceSolverState* DeviceState::state_of(const std::vector<BucketParameter>& state_key) {
  if (!has_memory()) {
    return nullptr;
  }
  return &solver_states_.find(state_key, [this](const DeviceSolverState* from) {
    return from == nullptr ? DeviceSolverState(method_.method, device()) : from->clone();
  });
}

/// The Future of what is enqueued on the current, that is the side stream.
FuturePtr DeviceState::complete(Call& call) const {
  if (call.result.isNone()) {
    call.result = call.output;
  }
  const bool is_tensor = call.result.isTensor();
  const c10::TypePtr type = is_tensor ? c10::TypePtr(c10::TensorType::get()) : c10::AnyType::get();
  std::vector<c10::Device> devices;
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> storages;
  if (device().is_cuda()) {
    devices.push_back(device());
    // What the events of the Future are about; not looked for in `result`, which may be Python's.
    const bool sparse = call.output.is_sparse();
    storages.push_back((sparse ? call.output._values() : call.output).storage().getWeakStorageImpl());
    if (sparse) {
      storages.push_back(call.output._indices().storage().getWeakStorageImpl());
    }
  }
  auto future = c10::make_intrusive<c10::ivalue::Future>(type, std::move(devices));
  future->markCompleted(std::move(call.result), std::move(storages));
  return future;
}

void DeviceState::moved_to(std::int64_t step) {
  const std::lock_guard in_order(enqueue_);
  if (!captured_) {
    records_.clear();  // those of steps that have not been, seen from here
    kept_weights_.clear();
    late_.clear();
  }
  if (collective_.is_reserved()) {
    side_.follow_current();
    const OnSideStream guard(device(), side_);
    collective_.step().continue_from(step);
    if (keeps_weights()) {
      collective_.step().forget_objectives();
    }
  }
}

std::int64_t DeviceState::step() const {
  const std::lock_guard in_order(enqueue_);
  if (!captured_) {
    return BucketMooState::step();
  }
  side_.follow_current();
  const OnSideStream guard(device(), side_);
  return collective_.step().read_counters().step;
}

// Replays run on the callers' streams: what reads has to follow those.

std::vector<BucketRecord> DeviceState::records() const {
  const std::lock_guard in_order(enqueue_);
  side_.follow_current();
  const OnSideStream guard(device(), side_);
  std::int64_t newest = 0;
  for (const auto& [key, record] : records_) {
    newest = std::max(newest, record.fields.step);
  }
  std::vector<BucketRecord> last;
  for (const auto& [key, record] : records_) {
    if (record.fields.step != newest) {
      continue;
    }
    BucketRecord read = record.fields;
    StepHeader header;
    std::tie(header, read.result) = record.result.read();
    collective_.step().check(header);
    read.step = captured_ ? collective_.step().read_counters().step : read.step;  // replays count on the device alone
    read.solved_step = header.step;
    read.objectives = collective_.step().objective_names(header.k);
    last.push_back(std::move(read));
  }
  std::sort(last.begin(), last.end(), [](const auto& a, const auto& b) { return a.index < b.index; });
  return last;
}

Counters DeviceState::counters() const {
  const std::lock_guard in_order(enqueue_);
  side_.follow_current();
  const OnSideStream guard(device(), side_);
  const cuda::DeviceCounters counted = collective_.step().read_counters();
  return {.buckets = counted.buckets + sparse_, .nonfinite = counted.nonfinite, .sparse = sparse_};
}

std::size_t DeviceState::scratch_bytes() const {
  const std::lock_guard in_order(enqueue_);
  std::size_t bytes = collective_.scratch_bytes() + sketches_.memory.capacity();
  for (const auto& [labels, kept] : kept_weights_.all()) {
    bytes += kept.sketches.memory.capacity();
  }
  return bytes;
}

std::vector<SavedSolverState> DeviceState::solver_states() const {
  std::vector<SavedSolverState> saved;
  if (!has_memory()) {
    return saved;
  }
  const std::lock_guard in_order(enqueue_);
  side_.follow_current();
  const OnSideStream guard(device(), side_);
  const std::vector<std::string> names = collective_.step().remembered_names();
  for (const auto& [labels, state] : solver_states_.buckets()) {
    auto [slots, values] = state->read();
    std::vector<std::string> objectives;
    for (const int slot : slots) {
      objectives.push_back(names[static_cast<std::size_t>(slot)]);
    }
    saved.push_back({labels, std::move(objectives), std::move(values)});
  }
  return saved;
}

void DeviceState::set_solver_states(const std::vector<SavedSolverState>& saved) {
  if (!has_memory()) {
    return;
  }
  const std::lock_guard in_order(enqueue_);
  TORCH_CHECK(!captured_, "bucket_moo_ext: load a state before capturing a graph, which goes on with its own");
  side_.follow_current();
  const OnSideStream guard(device(), side_);
  std::vector<std::string> names;
  ParameterOwners<DeviceSolverState> owners;
  for (const SavedSolverState& bucket : saved) {
    check_saved(method_.method, bucket);
    std::vector<int> slots;
    for (const std::string& objective : bucket.objectives) {
      const auto found = std::find(names.begin(), names.end(), objective);
      slots.push_back(static_cast<int>(found - names.begin()));
      if (found == names.end()) {
        names.push_back(objective);
      }
    }
    TORCH_CHECK_VALUE(names.size() <= static_cast<std::size_t>(kMaxRememberedNames),
                      "bucket_moo_ext: on a GPU at most ", kMaxRememberedNames,
                      " objective names can be remembered; the saved state has more");
    DeviceSolverState state(method_.method, device());
    state.write(slots, bucket.values);
    check_distinct(owners.add(bucket.parameters, std::move(state)));
  }
  collective_.step().set_remembered_names(names);
  solver_states_ = std::move(owners);
}

void DeviceState::shutdown() { shut_down_ = true; }

}  // namespace bucket_moo
