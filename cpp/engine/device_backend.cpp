#include "engine/device_backend.hpp"

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
#include "collective/sparse_mean.hpp"
#include "engine/solver_memory.hpp"
#include "engine/weight_schedule.hpp"
#include "nvtx_range.cuh"
#include "torch_types/device.hpp"
#include "torch_types/dtype.hpp"

namespace bucket_moo {
namespace {

constexpr const char* kWarmUp = "bucket_moo_ext: run at least one backward pass before capturing a graph";

/// Makes device and side stream current, for its scope.
class OnSideStream {
 public:
  OnSideStream(c10::Device device, const SideStream& side) : device_(device), stream_(side.stream()) {}

 private:
  KernelDeviceGuard device_;
  c10::StreamGuard stream_;
};

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

DeviceBackend::DeviceBackend(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device, EngineOptions options)
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
                                options_.grid, options_.grid_groups);
      }()),
      sketches_{DeviceBuffer(device)} {}

void DeviceBackend::check(const Reduction& reduction, bool starts_step, bool is_alone) {
  TORCH_CHECK(!shut_down_, "bucket_moo_ext: this state was shut down; make a new one");
  const std::lock_guard in_order(enqueue_);
  if (failure_) {
    std::rethrow_exception(failure_);
  }
  TORCH_CHECK_NOT_IMPLEMENTED(is_alone || !options_.sketch.enabled(),
                              "bucket_moo_ext: a step of several passes with a Sketch is not supported on ", device_,
                              " yet; use gramian='exact'");
  if (starts_step) {  // in its midst some ranks would, and others would wait for them
    collective_.step().check_past_steps();
  }
  check_capture(reduction, is_alone);
}

FuturePtr DeviceBackend::submit(PlacedReduction call) {
  give_up(take_broken_off(call), broken_off());
  const std::lock_guard in_order(enqueue_);
  try {
    return enqueue(call);
  } catch (const AgreedError&) {
    throw;
  } catch (...) {  // ranks are out of step
    failure_ = std::current_exception();
    throw;
  }
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

/// A pass of one objective is taken for one of several, and so is one whose weights come with the last bucket.
bool DeviceBackend::is_of_passes(const PlacedReduction& call) const {
  return !call.is_alone_in_step() || options_.layout == Layout::passes || is_of_model(call.line);
}

FuturePtr DeviceBackend::end_step(std::uint64_t line) {
  std::vector<Deferred> done;  // completed and dropped without the lock: callbacks and Python's tensors take the GIL
  std::unique_lock in_order(enqueue_);
  const bool solves_model = is_of_model(line) && !deferred_.empty();
  if (late_.empty() && !solves_model) {
    return {};
  }
  const at::NoGradGuard no_grad;
  const OnSideStream guard(device_, side_);
  try {
    solve_late(line);
    if (solves_model) {
      done = solve_model();
    }
  } catch (...) {
    failure_ = std::current_exception();
    done = solves_model ? std::exchange(deferred_, {}) : std::vector<Deferred>();
    in_order.unlock();
    give_up(std::move(done), std::current_exception());
    throw;
  }
  in_order.unlock();
  FuturePtr last;
  for (Deferred& bucket : done) {
    complete(bucket.call, bucket.future);
    last = bucket.future;
  }
  return last;
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
      is_alone && options_.layout == Layout::ranks && options_.grouping.scope() == Scope::bucket,
      "bucket_moo_ext: a step of several passes, with layout='passes' or scope='model', cannot be captured in "
      "a graph yet; capture steps of one pass with layout='ranks' and scope='bucket'");
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
  check_same_configuration(
      rank(), world_size(), [this](const at::Tensor& blocks) { collective_.exchange().all_gather_host(blocks); },
      options_.configuration);
  const int k = collective_.step().agree_on_objectives(call.record).k();
  if (call.is_alone_in_step()) {
    options_.check_objectives(k);
  }
  collective_.reserve_for(k);
  collective_.step().continue_from(call.step - 1);
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
  record->is_of_model = false;
  record->line = call.line;
  record->passes = call.pass + 1;
  return *record;
}

void DeviceBackend::reduce_dense(const PlacedReduction& call) {
  if (options_.sketch.width_for(call.gradient().numel()) > 0) {
    open_record(call, collective_.step().k_bound());
    reduce_sketched(call, book_.open(call.bucket));
    return;
  }
  const DeviceBucket bucket =
      collective_.begin(call.operation, call.output, call.input, call.pass, call.index, call.tile_limit);
  if (is_of_passes(call)) {
    put_aside(call, bucket);
    return;
  }
  const DeviceRecord& record = open_record(call, collective_.step().k_bound());
  collective_.reduce(bucket, record.on_device, memory_of(book_.open(call.bucket)));
}

/// Adds the bucket's rows to those of the passes before. In the last pass the result comes back; else zeros do.
void DeviceBackend::put_aside(const PlacedReduction& call, const DeviceBucket& bucket) {
  const std::shared_ptr<PutAside> aside = open_aside(
      book_, call, [this] { return DeviceTile(device_); },
      [&](DeviceTile& tile) { tile.begin(bucket.shard_size, bucket.tail_size, bucket.dtype); },
      [&](const DeviceTile& tile) { return tile.fits(bucket.shard_size, bucket.tail_size, bucket.dtype); });
  collective_.accumulate(bucket, call.pass, aside->tile);
  aside->bytes = aside->tile.capacity();
  if (call.leaves_open) {
    call.output.zero_();
    return;
  }
  aside->is_open = false;
  DeviceRecord& record = open_record(call, aside->tile.objectives());
  if (!is_of_model(call.line)) {
    collective_.reduce_tile(bucket, aside->tile, record.on_device, memory_of(book_.open(call.bucket)));
    return;
  }
  record.is_of_model = true;
  if (deferred_.empty()) {
    collective_.begin_model();
  }
  collective_.add_to_model(bucket, aside->tile, record.on_device);
  Deferred& deferred = deferred_.emplace_back(Deferred{call, bucket, aside, nullptr});
  deferred.call.input.reset();  // its row is in the tile
  if (call.is_late) {
    deferred.future = make_future(call);
  }
}

/// One problem for all buckets: their Gramians add up.
std::vector<DeviceBackend::Deferred> DeviceBackend::solve_model() {
  const Deferred& first = deferred_.front();
  collective_.step().select(kHookLine);
  const int k_bound = first.aside->tile.objectives();
  if (model_k_bound_ < k_bound) {
    model_result_ = collective_.make_result(k_bound);
    model_k_bound_ = k_bound;
  }
  collective_.solve_model(first.aside->tile, first.call.index, *model_result_,
                          memory_of(book_.open({{.name = "model:"}})));
  for (const Deferred& bucket : deferred_) {
    collective_.combine_tile(bucket.bucket, bucket.aside->tile);
  }
  return std::exchange(deferred_, {});
}

/// What waits for weights of a step that did not come to its end, if `call` is of the next one.
std::vector<DeviceBackend::Deferred> DeviceBackend::take_broken_off(const PlacedReduction& call) {
  const std::lock_guard in_order(enqueue_);
  const bool is_next = call.starts_step() && call.line == kHookLine;
  return is_next ? std::exchange(deferred_, {}) : std::vector<Deferred>();
}

/// To be called, and to drop the buckets, without the lock.
void DeviceBackend::give_up(std::vector<Deferred> buckets, const std::exception_ptr& error) {
  for (const Deferred& bucket : buckets) {
    if (bucket.future) {
      bucket.future->setError(error);
    }
  }
}

void DeviceBackend::shutdown() {
  shut_down_ = true;
  std::unique_lock in_order(enqueue_);
  std::vector<Deferred> broken = std::exchange(deferred_, {});
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
      late_.push_back({call.bucket, call.line, call.index, call.step});
    }
  } else {
    const DeviceResult* const kept = options_.keeps_weights() ? &keep(page, call.step) : nullptr;
    collective_.solve_sketched(sketches_, call.index, result, memory_of(page), /*counted=*/true, kept);
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
  if (!late_result_) {
    late_result_ = collective_.make_result();
  }
  collective_.step().select(line);
  for (auto solve = late_.begin(); solve != of_others; ++solve) {
    const LateSolve& late = *solve;
    Book::Page& page = book_.open(late.bucket);
    const DeviceResult& kept = keep(page, late.step);
    collective_.solve_sketched(page.kept->sketches, late.index, *late_result_, memory_of(page), /*counted=*/false,
                               &kept);
  }
  late_.erase(late_.begin(), of_others);
}

/// Where the weights that the solve of `step` gives are kept.
const DeviceResult& DeviceBackend::keep(Book::Page& page, std::int64_t step) {
  if (!page.kept) {
    page.kept.emplace(DeviceKept{collective_.make_result(), {DeviceBuffer(device_)}});
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
  std::vector<BucketRecord> last;
  for (const DeviceRecord* const record : book_.newest_records()) {
    BucketRecord read = *record;
    StepHeader header;
    std::tie(header, read.result) = record->on_device.read();
    collective_.step().check(header);
    if (record->is_of_model && model_result_) {
      const auto [of_step, model] = model_result_->read();
      if (of_step.step == header.step) {  // else the pass that closed this one broke off before the solve
        read.result.weights = model.weights;
        read.result.solution = model.solution;
      }
    }
    read.step =
        captured_ ? collective_.step().read_counters().step : record->step;  // replays count on the device alone
    read.solved_step = header.step;
    read.objectives = collective_.step().objective_names(record->line, header.k);
    read.rows = collective_.step().objective_rows(record->line, header.k);
    last.push_back(std::move(read));
  }
  return last;
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
  for (const auto& [parameters, state] : book_.memories()) {
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
  book_ = std::move(fresh);
  late_.clear();
}

}  // namespace bucket_moo
