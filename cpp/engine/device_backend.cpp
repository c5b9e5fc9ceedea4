#include "engine/device_backend.hpp"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/jit_type.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <iterator>
#include <tuple>
#include <utility>

#include "bucket_moo/state_layout.hpp"
#include "c10d_collective/sparse_mean.hpp"
#include "collective/agreed_error.hpp"
#include "engine/on_side_stream.hpp"
#include "engine/parts.hpp"
#include "engine/solver_memory.hpp"
#include "engine/weight_schedule.hpp"
#include "nvtx_range.cuh"
#include "torch_types/device.hpp"
#include "torch_types/dtype.hpp"
#include "torch_types/value_error.hpp"

namespace bucket_moo {
namespace {

constexpr const char* kWarmUp = "bucket_moo_ext: run at least one backward pass before capturing a graph";

/// What a backend holds from its start must not be a graph's. Asked for before anything is allocated, which would
/// spoil the capture.
c10::Device outside_of_capture(c10::Device device) {
  const KernelDeviceGuard guard(device);
  TORCH_CHECK(!is_capturing(current_stream(device)), kWarmUp);
  return device;
}

template <class T>
at::Tensor upload(const std::vector<T>& values, c10::ScalarType type, c10::Device device) {
  return values.empty() ? at::Tensor() : at::tensor(values, type).to(device);
}

}  // namespace

DeviceBackend::DeviceMethod::DeviceMethod(const MethodConfig& config, c10::Device device)
    : preference(upload(config.preference(), at::kDouble, device)),
      permutation(upload(config.permutation(), at::kInt, device)),
      method(config.method(preference.defined() ? preference.const_data_ptr<double>() : nullptr,
                           permutation.defined() ? permutation.const_data_ptr<int>() : nullptr)) {}

DeviceBackend::DeviceBackend(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device, EngineOptions options,
                             c10::intrusive_ptr<c10d::ProcessGroup> pieces)
    : device_(outside_of_capture(device)),
      options_(std::move(options)),
      side_(device),
      method_([&] {
        const OnSideStream guard(device, side_);
        return DeviceMethod(options_.method, device);
      }()),
      collective_([&] {  // whose memory is the side stream's
        const OnSideStream guard(device, side_);
        return DeviceCollective(std::move(group), device, method_.method, options_.seed, options_.sketch,
                                {.expected_objectives = options_.method.expected_objectives(),
                                 .keeps_objectives = options_.keeps_weights(),
                                 .one_objective = options_.layout == Layout::passes},
                                options_.grid, options_.grid_groups, std::move(pieces));
      }()),
      sketches_{DeviceBuffer(device)},
      of_direct_calls_(Scope::bucket, {}, options_.grouping.by_support(), options_.grouping.keeps_mean_scale(),
                       options_.grouping.has_pieces()) {
  const Grouping& grouping = options_.grouping;
  TORCH_CHECK_NOT_IMPLEMENTED(
      !has_memory(method_.method) || !(grouping.by_support() || grouping.scope() == Scope::parameter),
      "bucket_moo_ext: methods that remember earlier steps (GradVac, Smoothed) are supported on the "
      "host alone with scope='parameter' or support=True");
}

void DeviceBackend::check(const Reduction& reduction, bool starts_step, bool is_alone) {
  TORCH_CHECK(!shut_down_, "bucket_moo_ext: this state was shut down; make a new one");
  const std::lock_guard in_order(enqueue_);
  if (failure_) {
    std::rethrow_exception(failure_);
  }
  if (starts_step) {  // in its midst some ranks would, and others would wait for them
    with_torch_errors([this] { collective_.step().check_past_steps(); });
  }
  check_capture(reduction, is_alone);
}

FuturePtr DeviceBackend::submit(PlacedReduction call) {
  give_up(take_broken_off(call), broken_off());
  std::unique_lock in_order(enqueue_);
  try {
    return enqueue(call);
  } catch (const AgreedError&) {
    std::rethrow_exception(current_torch_exception());
  } catch (...) {  // ranks are out of step
    const std::exception_ptr failure = current_torch_exception();
    failure_ = failure;
    model_.reset();
    std::vector<Deferred> waiting = take_deferred();
    in_order.unlock();
    give_up(std::move(waiting), failure);
    std::rethrow_exception(failure);
  }
}

/// All that is not done yet.
std::vector<DeviceBackend::Deferred> DeviceBackend::take_deferred() {
  std::vector<Deferred> all = std::exchange(deferred_, {});
  std::vector<Deferred> combined = std::exchange(combined_, {});
  std::move(combined.begin(), combined.end(), std::back_inserter(all));
  return all;
}

FuturePtr DeviceBackend::enqueue(PlacedReduction& call) {
  const at::NoGradGuard no_grad;
  const cuda::NvtxRange range("bucket_moo bucket");
  side_.follow_current();
  const OnSideStream guard(device_, side_);
  record_streams(call);
  if (!collective_.is_reserved()) {
    agree_on_first_step(call);
  }
  if (call.starts_step()) {
    solve_late(call.line);  // of a step that did not come to its end
    book_.forget_records_of_long_ago(call.step);
  }
  DeviceStep& step = collective_.step();
  if (!call.starts_pass()) {
    step.select(call.line);
  } else if (is_of_passes(call)) {
    step.begin_pass(call.line, call.record);
  } else {
    step.begin(call.line, call.record);
  }
  if (call.output.is_sparse()) {
    reduce_sparse(call);
  } else {
    reduce_dense(call);
  }
  FuturePtr future = make_future(call);
  if (!deferred_.empty() && !deferred_.back().future) {
    deferred_.back().future = future;
  } else {
    complete(call, future);
  }
  return future;
}

/// Refuses to capture what has not been reduced before: its memory would be the graph's.
void DeviceBackend::check_capture(const Reduction& reduction, bool is_alone) {
  const KernelDeviceGuard guard(device_);
  if (!is_capturing(current_stream(device_))) {
    return;
  }
  TORCH_CHECK(!options_.keeps_weights(), "bucket_moo_ext: a Sketch with refresh_every > 1 or lag=1 cannot be ",
              "captured in a graph: which steps solve is decided on the host, and a late solve goes on behind the ",
              "graph's end");
  TORCH_CHECK_NOT_IMPLEMENTED(
      is_alone && options_.layout == Layout::ranks && options_.grouping.scope() == Scope::bucket &&
          !options_.grouping.has_parts(),
      "bucket_moo_ext: a step of several passes, with layout='passes', another scope than 'bucket' or support=True "
      "cannot be captured in a graph yet; capture steps of one pass with layout='ranks', scope='bucket' and "
      "support=False");
  TORCH_CHECK(collective_.is_reserved(), kWarmUp);
  const Book::Page* const page = reduction.output.is_sparse() ? nullptr : book_.find(reduction.bucket);
  TORCH_CHECK(page != nullptr && page->record && page->record->numel == reduction.gradient().numel() &&
                  page->record->dtype == reduction.dtype(),
              "bucket_moo_ext: reduce the same buckets once more before capturing a graph; one of ",
              reduction.gradient().numel(), " elements is not known yet");
  captured_ = true;
  book_.keep_all();
  collective_.keep_memory();
  sketches_.memory.keep_all();
}

/// The caller may drop its tensors before the side stream has come to them.
void DeviceBackend::record_streams(const PlacedReduction& call) const {
  if (!device_.is_cuda()) {
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
void DeviceBackend::agree_on_first_step(const PlacedReduction& call) {
  int k = 0;
  collective_.step().agree_with_pieces([&] {
    k = agree_in_group(call);
    return hash_of_call(call, c10::str(call.record.objective.text(), " ", call.record.weight));
  });
  if (has_pieces()) {
    const DeviceExchange& pieces = collective_.pieces();
    check_same_configuration(
        pieces.rank(), pieces.size(), [&pieces](std::span<std::byte> blocks) { pieces.all_gather_host(blocks); },
        of_whole_model(options_.configuration));
  }
  collective_.reserve_for(k);
  collective_.step().continue_from(call.step - 1);
}

/// Returns K.
int DeviceBackend::agree_in_group(const PlacedReduction& call) {
  check_same_configuration(
      rank(), world_size(), [this](std::span<std::byte> blocks) { collective_.exchange().all_gather_host(blocks); },
      options_.configuration);
  const int k = collective_.step().agree_on_objectives(call.record).k();
  if (call.is_alone_in_step()) {
    options_.check_objectives(k);
  }
  return k;
}

/// The record of the bucket's last reduction, which becomes that of `call`.
DeviceBackend::DeviceRecord& DeviceBackend::open_record(const PlacedReduction& call, int k_bound) {
  std::optional<DeviceRecord>& record = book_.open(call.bucket).record;
  if (!record || record->k_bound < k_bound) {
    if (record && captured_) {
      outgrown_results_.push_back(std::move(record->on_device));
    }
    record.emplace(DeviceRecord{{}, collective_.make_result(k_bound), k_bound});
  }
  static_cast<BucketRecord&>(*record) = record_of(call, options_.sketch);
  record->group = is_of_model(call.line) ? "model" : "";
  record->is_of_model = false;
  record->is_kept = false;
  record->has_gramian = true;
  record->parts = nullptr;
  record->line = call.line;
  record->passes = call.pass + 1;
  return *record;
}

void DeviceBackend::reduce_dense(const PlacedReduction& call) {
  if (is_of_passes(call)) {
    put_aside(call);
    return;
  }
  const DeviceRecord& record = open_record(call, collective_.step().k_bound());
  if (record.width > 0) {
    reduce_sketched(call, book_.open(call.bucket));
    return;
  }
  collective_.sum_inside(call.operation, call.output, call.input, call.pass);
  collective_.reduce(exact_bucket(call), record.on_device, memory_of_group(call.bucket));
}

void DeviceBackend::shutdown() {
  shut_down_ = true;
  std::unique_lock in_order(enqueue_);
  model_.reset();
  std::vector<Deferred> broken = take_deferred();
  in_order.unlock();
  give_up(std::move(broken), broken_off());
}

void DeviceBackend::reduce_sketched(const PlacedReduction& call, Book::Page& page) {
  const at::Tensor& gradient = call.gradient();
  const DeviceResult& result = page.record->on_device;
  const WeightPlan plan =
      plan_weights(options_.schedule, call.step, page.kept ? std::optional(page.kept->step) : std::nullopt);
  if (plan.solves) {
    collective_.start_sketch(gradient, call.index, page.record->width,
                             plan.uses_kept ? page.kept->sketches : sketches_);
  }
  std::optional<KeptWeights> weights;
  if (plan.uses_kept) {
    weights.emplace(KeptWeights{page.kept->result, result});
    if (plan.solves) {
      late_.push_back({call.bucket, call.line, call.index, call.step, nullptr});
    }
  } else {
    const DeviceResult* const kept = options_.keeps_weights() ? &keep(page, call.step) : nullptr;
    collective_.solve_sketched(sketches_, call.index, {.result = result, .state = memory_of(page), .kept = kept});
  }
  const KeptWeights* const kept = weights ? &*weights : nullptr;
  if (call.operation == Operation::reduce_scatter) {
    collective_.weighted_reduce_scatter(call.output, call.input, kept);
  } else {
    collective_.weighted_all_reduce(call.output, kept);
  }
}

/// Behind the step's last Future: nothing of this step waits for it, not on the stream either.
void DeviceBackend::solve_late(std::uint64_t line) {
  const auto of_others =
      std::stable_partition(late_.begin(), late_.end(), [line](const LateSolve& late) { return late.line == line; });
  if (of_others == late_.begin()) {
    return;
  }
  collective_.step().select(line);
  for (auto next = late_.begin(); next != of_others; ++next) {
    const LateSolve& late = *next;
    Book::Page& page = book_.open(late.bucket);
    const DeviceSolve solve{
        .result = late_result(), .state = memory_of(page), .kept = &keep(page, late.step), .counted = false};
    if (late.aside) {
      const Rows& rows = late.aside->tile;
      collective_.solve_tile(collective_.sketch_columns(rows.dtype, rows.width, late.index), rows.tile,
                             collective_.method(), solve);
    } else {
      collective_.solve_sketched(page.kept->sketches, late.index, solve);
    }
  }
  late_.erase(late_.begin(), of_others);
}

/// Where the result of a solve goes whose step has used other weights.
const DeviceResult& DeviceBackend::late_result() {
  if (!late_result_) {
    late_result_ = collective_.make_result(kMaxObjectives);
  }
  return *late_result_;
}

/// Where the weights that the solve of `step` gives are kept: with room for any number, as steps of one pass and of
/// several make room for different ones.
const DeviceResult& DeviceBackend::keep(Book::Page& page, std::int64_t step) {
  if (!page.kept) {
    page.kept.emplace(DeviceKept{collective_.make_result(kMaxObjectives), {DeviceBuffer(device_)}});
  }
  page.kept->step = step;
  return page.kept->result;
}

void DeviceBackend::reduce_sparse(const PlacedReduction& call) {
  reduce_sparse_mean(call.output, rank(), world_size(), [this](const at::Tensor& blocks) {
    collective_.exchange().all_gather(blocks.view({-1}).view(at::kByte));
  });
  if (call.pass > 0 && !call.leaves_open) {  // whose gradient, added up by autograd, is the sum of all passes' means
    call.output._values().mul_(1.0 / (call.pass + 1));
  }
  ++sparse_;
}

/// nullptr for methods without a memory.
const DeviceSolverState* DeviceBackend::memory_of(Book::Page& page) {
  if (!has_memory(method_.method)) {
    return nullptr;
  }
  if (!page.memory) {
    page.memory.emplace(method_.method, device_);
  }
  return &*page.memory;
}

FuturePtr DeviceBackend::make_future(const PlacedReduction& call) const {
  const bool is_tensor = call.result.isTensor();
  const c10::TypePtr type = is_tensor ? c10::TypePtr(c10::TensorType::get()) : c10::AnyType::get();
  return c10::make_intrusive<c10::ivalue::Future>(
      type, device_.is_cuda() ? std::vector<c10::Device>{device_} : std::vector<c10::Device>());
}

/// With what is enqueued on the current, that is the side stream.
void DeviceBackend::complete(PlacedReduction& call, const FuturePtr& future) {
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> storages;
  if (!future->devices().empty()) {
    // What the events of the Future are about; not looked for in `result`, which may be Python's.
    const bool sparse = call.output.is_sparse();
    storages.push_back((sparse ? call.output._values() : call.output).storage().getWeakStorageImpl());
    if (sparse) {
      storages.push_back(call.output._indices().storage().getWeakStorageImpl());
    }
  }
  future->markCompleted(std::move(call.result), std::move(storages));
}

void DeviceBackend::continue_from(std::int64_t step) {
  const std::lock_guard in_order(enqueue_);
  book_.forget_steps();  // which have not been, seen from here
  late_.clear();
  if (collective_.is_reserved()) {
    side_.follow_current();
    const OnSideStream guard(device_, side_);
    collective_.step().continue_from(step);
    if (options_.keeps_weights()) {
      collective_.step().forget_objectives();
    }
  }
}

std::optional<std::int64_t> DeviceBackend::counted_steps() const {
  const std::lock_guard in_order(enqueue_);
  if (!captured_) {
    return std::nullopt;
  }
  side_.follow_current();
  const OnSideStream guard(device_, side_);
  return collective_.step().read_counters().step;
}

// Replays run on the callers' streams: what reads has to follow those.

std::vector<BucketRecord> DeviceBackend::records() const {
  const std::lock_guard in_order(enqueue_);
  side_.follow_current();
  const OnSideStream guard(device_, side_);
  return with_torch_errors([this] {
    std::vector<BucketRecord> last;
    for (const DeviceRecord* const record : book_.newest_records()) {
      std::vector<BucketRecord> of_bucket = read(*record);
      std::move(of_bucket.begin(), of_bucket.end(), std::back_inserter(last));
    }
    return last;
  });
}

std::vector<BucketRecord> DeviceBackend::read(const DeviceRecord& record) const {
  if (record.parts) {
    return read_parts(record);
  }
  BucketRecord read = record;
  StepHeader header;
  std::tie(header, read.result) = record.on_device.read();
  if (!record.is_kept) {
    collective_.step().check(header);
  }
  if (record.is_of_model && model_result_) {
    const auto [of_step, model] = model_result_->read();
    if (record.is_kept) {
      collective_.step().check(of_step);
      if (!record.has_gramian || header.step != of_step.step) {
        read.result.gramian.assign(static_cast<std::size_t>(of_step.k) * static_cast<std::size_t>(of_step.k), 0.0);
      }
      header = of_step;
    }
    if (of_step.step == header.step) {  // else the pass that closed this one broke off before the solve
      read.result.weights = model.weights;
      read.result.solution = model.solution;
    }
  }
  read.step = captured_ ? collective_.step().read_counters().step : record.step;  // replays count on the device alone
  read.solved_step = header.step;
  read.objectives = collective_.step().objective_names(record.line, header.k);
  read.rows = collective_.step().objective_rows(record.line, header.k);
  return {read};
}

Counters DeviceBackend::counters() const {
  const std::lock_guard in_order(enqueue_);
  side_.follow_current();
  const OnSideStream guard(device_, side_);
  const cuda::DeviceCounters counted = collective_.step().read_counters();
  return {.buckets = counted.buckets + sparse_, .nonfinite = counted.nonfinite, .sparse = sparse_};
}

std::size_t DeviceBackend::scratch_bytes() const {
  const std::lock_guard in_order(enqueue_);
  std::size_t bytes = collective_.scratch_bytes() + sketches_.memory.capacity();
  book_.for_each_page([&](const Book::Page& page) {
    bytes += page.kept ? page.kept->sketches.memory.capacity() : 0;
    bytes += page.aside ? page.aside->bytes : 0;
  });
  for (const auto& [name, group] : groups_) {
    bytes += group.problems->capacity();
  }
  return bytes;
}

std::vector<SavedSolverState> DeviceBackend::solver_states() const {
  std::vector<SavedSolverState> saved;
  if (!has_memory(method_.method)) {
    return saved;
  }
  const std::lock_guard in_order(enqueue_);
  side_.follow_current();
  const OnSideStream guard(device_, side_);
  const std::vector<std::string> names = collective_.step().remembered_names();
  for (const auto& [parameters, state] : memories().memories()) {
    auto [slots, values] = state->read();
    std::vector<std::string> objectives;
    for (const int slot : slots) {
      objectives.push_back(names[static_cast<std::size_t>(slot)]);
    }
    saved.push_back({parameters, std::move(objectives), std::move(values)});
  }
  return saved;
}

void DeviceBackend::set_solver_states(const std::vector<SavedSolverState>& saved) {
  const std::lock_guard in_order(enqueue_);
  TORCH_CHECK(!captured_, "bucket_moo_ext: load a state before capturing a graph, which goes on with its own");
  if (!has_memory(method_.method)) {
    book_.forget_steps();
    late_.clear();
    return;
  }
  side_.follow_current();
  const OnSideStream guard(device_, side_);
  std::vector<std::string> names;
  Book fresh;
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
    DeviceSolverState state(method_.method, device_);
    state.write(slots, bucket.values);
    check_distinct(fresh.add(bucket.parameters, std::move(state)));
  }
  collective_.step().set_remembered_names(names);
  book_ = {};
  memories() = std::move(fresh);
  late_.clear();
}

}  // namespace bucket_moo
