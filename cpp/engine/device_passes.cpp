// DeviceBackend's part for buckets that are put aside: steps of several passes, and weights of the whole model.
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <exception>
#include <optional>
#include <utility>

#include "bucket_moo/limits.hpp"
#include "engine/device_backend.hpp"
#include "engine/on_side_stream.hpp"
#include "engine/weight_schedule.hpp"
#include "torch_types/value_error.hpp"

namespace bucket_moo {
namespace {

/// What weights and memory of a method are known by where one problem is solved for all buckets.
const BucketId kModel{{.name = "model:"}};

}  // namespace

/// A pass of one objective is taken for one of several, and so is one whose weights come with the last bucket or whose
/// buckets have parts.
bool DeviceBackend::is_of_passes(const PlacedReduction& call) const {
  return !call.is_alone_in_step() || options_.layout == Layout::passes || is_of_model(call.line) ||
         grouping_of(call.line).has_parts();
}

FuturePtr DeviceBackend::end_step(std::uint64_t line) {
  std::vector<Deferred> done;  // completed and dropped without the lock: callbacks and Python's tensors take the GIL
  std::unique_lock in_order(enqueue_);
  if (failure_ || shut_down_) {
    return {};
  }
  const bool solves_model = is_of_model(line) && model_;
  const bool waits_for_groups = line == kHookLine && options_.grouping.has_parts() && !deferred_.empty();
  if (late_.empty() && !solves_model && !waits_for_groups && combined_.empty()) {
    return {};
  }
  const at::NoGradGuard no_grad;
  const OnSideStream guard(device_, side_);
  try {
    solve_late(line);
    if (solves_model) {
      done = solve_model();
    } else if (line == kHookLine) {
      if (waits_for_groups) {
        finish_parts();
      }
      done = std::exchange(combined_, {});
    }
  } catch (...) {
    const std::exception_ptr failure = current_torch_exception();
    failure_ = failure;
    done = line == kHookLine ? take_deferred() : std::vector<Deferred>();
    in_order.unlock();
    give_up(std::move(done), failure);
    std::rethrow_exception(failure);
  }
  in_order.unlock();
  FuturePtr last;
  for (Deferred& bucket : done) {
    complete(bucket.call, bucket.future);
    last = bucket.future;
  }
  return last;
}

/// Behind what the inside group does of a pass, where there is one.
DeviceBucket DeviceBackend::exact_bucket(const PlacedReduction& call) const {
  return collective_.bucket(call.operation, call.output, call.input, call.index, call.tile_limit);
}

/// What is exchanged of a bucket: all of it, or its sketches.
DeviceBucket DeviceBackend::bucket_of(const PlacedReduction& call, const Rows& rows) {
  return rows.width > 0 ? collective_.sketch_columns(call.dtype(), rows.width, call.index) : exact_bucket(call);
}

/// Adds the bucket's rows to those of the passes before. In the last pass the result comes back; else zeros do.
void DeviceBackend::put_aside(const PlacedReduction& call) {
  const std::shared_ptr<PutAside> aside = open_aside(
      book_, call, [this] { return Rows(device_); }, [&](Rows& rows) { begin_rows(call, rows); },
      [&](const Rows& rows) { return fits(call, rows); });
  add_rows(call, aside->tile);
  aside->bytes = aside->tile.tile.capacity() + aside->tile.own.capacity();
  if (call.leaves_open) {
    call.output.zero_();
    return;
  }
  aside->is_open = false;
  if (grouping_of(call.line).has_parts()) {
    close_parts(call, aside);
  } else if (is_of_model(call.line)) {
    close_in_model(call, aside);
  } else {
    close(call, aside);
  }
}

/// For a step that begins for this bucket.
void DeviceBackend::begin_rows(const PlacedReduction& call, Rows& rows) {
  const std::int64_t n = call.gradient().numel();
  rows.dtype = call.dtype();
  rows.width = options_.sketch.width_for(n);
  rows.index = call.index;
  rows.passes = 0;
  rows.source = source_of(call, rows.width);
  const DeviceBucket bucket = bucket_of(call, rows);
  rows.tile.begin(bucket.shard_size, bucket.tail_size, bucket.dtype);
  if (rows.width > 0) {
    const bool are_known = call.totals && rows.source.of != WeightSource::Of::step;
    rows.own.begin(n, rows.dtype, are_known && !call.is_alone_in_step());
  }
}

bool DeviceBackend::fits(const PlacedReduction& call, const Rows& rows) {
  const DeviceBucket bucket = bucket_of(call, rows);
  return rows.tile.fits(bucket.shard_size, bucket.tail_size, bucket.dtype) &&
         (rows.width == 0 || rows.own.fits(call.gradient().numel(), call.dtype()));
}

void DeviceBackend::add_rows(const PlacedReduction& call, Rows& rows) {
  ++rows.passes;
  if (rows.width == 0) {
    collective_.sum_inside(call.operation, call.output, call.input, call.pass);
    collective_.accumulate(exact_bucket(call), call.pass, rows.tile);
    return;
  }
  const at::Tensor& row = call.gradient();
  if (rows.source.solves) {
    collective_.accumulate_sketch(row, rows.index, rows.width, call.pass, rows.tile);
  }
  if (call.is_alone_in_step()) {  // the bucket itself holds the row
    collective_.take_own_row(call.pass, rows.own);
  } else if (!rows.own.in_one_sum()) {
    collective_.add_own_row(row, call.record.objective, call.pass, rows.own);
  } else {
    const DeviceKept* const kept = rows.source.of == WeightSource::Of::kept ? kept_of(call) : nullptr;
    TORCH_INTERNAL_ASSERT((kept != nullptr) == (rows.source.of == WeightSource::Of::kept));
    collective_.add_known_row(row, call.pass, kept == nullptr ? nullptr : &kept->result,
                              1.0 / static_cast<double>(call.totals->size()), std::max(call.record.total, 0.0),
                              rows.own);
  }
}

/// The weights that are kept for a bucket, or for its model.
DeviceBackend::DeviceKept* DeviceBackend::kept_of(const PlacedReduction& call) const {
  Book::Page* const page = book_.find(is_of_model(call.line) ? kModel : call.bucket);
  return page != nullptr && page->kept ? &*page->kept : nullptr;
}

/// Kept weights fit: a step that has other objectives has an error.
DeviceBackend::WeightSource DeviceBackend::source_of(const PlacedReduction& call, std::int64_t width) const {
  if (!options_.keeps_weights() || (width == 0 && !is_of_model(call.line))) {
    return {};
  }
  const DeviceKept* const kept = kept_of(call);
  const WeightPlan plan =
      plan_weights(options_.schedule, call.step, kept != nullptr ? std::optional(kept->step) : std::nullopt);
  if (plan.uses_kept) {
    return {WeightSource::Of::kept, plan.solves};
  }
  if (kept == nullptr && options_.schedule.lag &&
      call.totals) {  // so that training need not begin with rows kept apart
    return {WeightSource::Of::totals, true};
  }
  return {};
}

/// The rows are complete: combines them.
void DeviceBackend::close(const PlacedReduction& call, const std::shared_ptr<PutAside>& aside) {
  const Rows& rows = aside->tile;
  const DeviceBucket bucket = bucket_of(call, rows);
  const DeviceResult& result =
      open_record(call, std::max(rows.tile.objectives(), collective_.step().pass_capacity())).on_device;
  Book::Page& page = book_.open(call.bucket);
  if (rows.width == 0) {
    collective_.reduce_tile(bucket, rows.tile, result, memory_of_group(call.bucket));
    return;
  }
  switch (rows.source.of) {
    case WeightSource::Of::step:
      collective_.solve_tile(bucket, rows.tile, collective_.method(),
                             {.result = result,
                              .state = memory_of(page),
                              .kept = options_.keeps_weights() ? &keep(page, call.step) : nullptr});
      combine(call, rows, result, /*is_fresh=*/true);
      return;
    case WeightSource::Of::kept:
      collective_.use_kept(page.kept->result, result, /*counted=*/true);
      break;
    case WeightSource::Of::totals:
      collective_.solve_tile(bucket, rows.tile, {.id = MethodId::mean}, {.result = result});
      break;
  }
  combine(call, rows, result, /*is_fresh=*/false);
  if (rows.source.solves) {
    late_.push_back({call.bucket, call.line, call.index, call.step, aside});
  }
}

/// Adds the bucket's Gramian to the model's, and combines the rows if their weights are known without it.
void DeviceBackend::close_in_model(const PlacedReduction& call, const std::shared_ptr<PutAside>& aside) {
  const Rows& rows = aside->tile;
  DeviceRecord& record = open_record(call, std::max(rows.tile.objectives(), collective_.step().pass_capacity()));
  Book::Page& page = book_.open(call.bucket);
  record.is_of_model = rows.source.of != WeightSource::Of::totals;
  record.is_kept = rows.source.of == WeightSource::Of::kept;
  if (record.is_kept) {
    collective_.use_kept(kept_of(call)->result, model_result(), /*counted=*/true);
    record.has_gramian = page.kept.has_value();
    if (record.has_gramian) {
      collective_.use_kept(page.kept->result, record.on_device, /*counted=*/false);
    }
    combine(call, rows, model_result(), /*is_fresh=*/false);
  }
  if (rows.source.solves) {
    if (!model_) {
      collective_.begin_model();
      model_ = ModelProblem{call.index, call.step, aside, rows.source.of};
    }
    collective_.add_to_model(bucket_of(call, rows), rows.tile,
                             {.result = record.is_kept ? late_result() : record.on_device,
                              .kept = options_.keeps_weights() ? &keep(page, call.step) : nullptr,
                              .counted = !record.is_kept});
  }
  if (rows.source.of == WeightSource::Of::totals) {
    combine(call, rows, record.on_device, /*is_fresh=*/false);
  } else if (rows.source.of == WeightSource::Of::step) {
    defer(call, aside);
  }
}

/// Until the weights of the bucket are there.
void DeviceBackend::defer(const PlacedReduction& call, const std::shared_ptr<PutAside>& aside) {
  Deferred& deferred = deferred_.emplace_back(Deferred{call, aside, nullptr});
  if (call.input.defined() && !(aside->tile.width > 0 && call.is_alone_in_step())) {
    // Its row is in the tile, or put aside: its size alone counts.
    deferred.call.input = at::empty_like(call.input, call.input.options().device(at::kMeta));
  }
  if (call.is_late) {
    deferred.future = make_future(call);
  }
}

/// Writes the result of a bucket to where its gradient was.
void DeviceBackend::combine(const PlacedReduction& call, const Rows& rows, const DeviceResult& used, bool is_fresh) {
  const at::Tensor input = call.operation == Operation::reduce_scatter ? call.input : at::Tensor();
  if (rows.width > 0 && call.is_alone_in_step()) {
    collective_.combine_buckets(call.output, input, rows.own, used);
  } else if (rows.width > 0) {
    collective_.combine_own_rows(call.output, input, rows.own, used, is_fresh);
  } else if (is_fresh) {
    collective_.combine_tile(exact_bucket(call), rows.tile);
  } else {
    collective_.combine_tile(exact_bucket(call), rows.tile, used, /*is_fresh=*/false);
  }
}

const DeviceResult& DeviceBackend::model_result() {
  if (!model_result_) {
    model_result_ = collective_.make_result(kMaxObjectives);
  }
  return *model_result_;
}

/// One problem for all buckets: their Gramians add up.
std::vector<DeviceBackend::Deferred> DeviceBackend::solve_model() {
  const ModelProblem problem = *std::exchange(model_, std::nullopt);
  collective_.step().select(kHookLine);
  Book::Page& page = book_.open(kModel);
  const bool is_fresh = problem.of == WeightSource::Of::step;
  collective_.solve_model(problem.aside->tile.tile, problem.index,
                          {.result = is_fresh ? model_result() : late_result(),
                           .state = memory_of(page),
                           .kept = options_.keeps_weights() ? &keep(page, problem.step) : nullptr,
                           .counted = false});
  for (const Deferred& bucket : deferred_) {
    const Rows& rows = bucket.aside->tile;
    const int last = bucket.call.pass;
    if (rows.width == 0 && !(rows.was_in_every_pass(last) && problem.aside->tile.was_in_every_pass(last))) {
      collective_.combine_tile(exact_bucket(bucket.call), rows.tile, model_result(), /*is_fresh=*/true);
    } else {
      combine(bucket.call, rows, model_result(), /*is_fresh=*/true);
    }
  }
  return std::exchange(deferred_, {});
}

/// What waits for weights of a step that did not come to its end, if `call` is of the next one.
std::vector<DeviceBackend::Deferred> DeviceBackend::take_broken_off(const PlacedReduction& call) {
  const std::lock_guard in_order(enqueue_);
  const bool is_next = call.starts_step() && call.line == kHookLine;
  if (is_next) {
    model_.reset();
  }
  return is_next ? take_deferred() : std::vector<Deferred>();
}

/// To be called, and to drop the buckets, without the lock.
void DeviceBackend::give_up(std::vector<Deferred> buckets, const std::exception_ptr& error) {
  for (const Deferred& bucket : buckets) {
    if (bucket.future) {
      bucket.future->setError(error);
    }
  }
}

}  // namespace bucket_moo
