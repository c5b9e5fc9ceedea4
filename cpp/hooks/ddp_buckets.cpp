#include "hooks/ddp_buckets.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/core/jit_type.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstddef>
#include <optional>

namespace bucket_moo {

DdpBuckets::DdpBuckets(std::shared_ptr<Engine> engine, std::int64_t bucket_cap)
    : engine_(std::move(engine)), bucket_cap_(bucket_cap) {}

FuturePtr DdpBuckets::run(c10d::GradBucket& bucket, c10::IValue result) {
  const bool starts_pass = bucket.getIndex() == 0;
  if (starts_pass) {
    begin_pass();
  }
  const std::vector<at::Tensor> parameters = bucket.getParameters();
  Reduction reduction{.operation = Operation::ddp_bucket,
                      .output = bucket.getBufferRef(),
                      .input = {},
                      .bucket = names_.bucket_of(parameters),
                      .tile_limit = tile_limit(parameters)};
  if (keeps_this_pass_) {
    return keep(reduction, std::move(result));
  }
  engine_->check(reduction);
  check_kept_gradients(reduction, parameters, starts_pass);
  if (first_pass_.is_kept() && !reduction.output.is_sparse()) {
    bring_first_pass(reduction);
  }
  if (engine_->closes_several_passes() && !reduction.output.is_sparse()) {
    left_alone_.watch(reduction.output, parameters);
  }
  FuturePtr done = engine_->reduce(std::move(reduction), std::move(result));
  if (bucket.isLast()) {
    first_pass_.forget();
    engine_->end_pass();
  }
  return done;
}

void DdpBuckets::begin_pass() {
  left_alone_.begin_pass();
  if (std::exchange(gives_up_, false)) {
    first_pass_.forget();
  }
  PassOptions options = engine_->next_pass();
  const bool is_first = !std::exchange(has_begun_, true);
  keeps_this_pass_ = is_first && options.leaves_open;
  if (keeps_this_pass_) {
    first_pass_.begin(std::move(options));
    return;
  }
  if (first_pass_.is_kept()) {
    engine_->begin_pass(first_pass_.options());
  }
  engine_->begin_pass(std::move(options));
}

/// Hands back zeros. What is sparse comes back as it is: DDP adds it to the next pass's, and the mean of sums is what
/// becomes of that.
FuturePtr DdpBuckets::keep(const Reduction& reduction, c10::IValue result) {
  engine_->check_alone(reduction);
  if (!reduction.output.is_sparse()) {
    const at::NoGradGuard no_grad;
    first_pass_.keep(reduction.bucket, reduction.output);
    reduction.output.zero_();
  }
  const c10::TypePtr type = result.isNone() ? c10::TypePtr(c10::TensorType::get()) : c10::AnyType::get();
  auto done = c10::make_intrusive<c10::ivalue::Future>(type);
  done->markCompleted(result.isNone() ? c10::IValue(reduction.output) : std::move(result));
  return done;
}

/// What goes wrong with it goes wrong with the bucket's reduction in this pass, too.
void DdpBuckets::bring_first_pass(const Reduction& reduction) {
  Reduction first = reduction;
  first.output = first_pass_.row_of(reduction.bucket, reduction.output);
  first.of_pass = 0;
  engine_->reduce(std::move(first));
}

/// DDP closes a bucket once it has reached the cap, hence a regular one holds at most this.
std::int64_t DdpBuckets::tile_limit(const std::vector<at::Tensor>& parameters) const {
  std::int64_t largest = 0;
  for (const at::Tensor& parameter : parameters) {
    largest = std::max(largest, static_cast<std::int64_t>(parameter.nbytes()));
  }
  return bucket_cap_ + largest;
}

/// Gradients that are kept are no error: on other ranks they may not be, and would wait for this one.
void DdpBuckets::check_kept_gradients(const Reduction& reduction, const std::vector<at::Tensor>& parameters,
                                      bool starts_pass) {
  // The mean of (reduced before + new) is (reduced before + mean of the new).
  const bool is_mean = engine_->method() == MethodId::mean;
  if (is_mean || reduction.output.is_sparse()) {
    return;
  }
  if (const std::optional<std::size_t> found = kept_gradients_.find(reduction.output, parameters, starts_pass)) {
    TORCH_WARN(
        "bucket_moo_ext: gradients were not zeroed between two backward passes that were reduced (.grad of '",
        reduction.bucket.at(*found).title, "' was not zero when the second began). The weights are solved from what ",
        "was reduced before plus the new gradients, and objectives may conflict unseen. Call zero_grad() between two ",
        "steps; run all but the last pass of a step under state.accumulate(), or under no_sync() where they are "
        "batches ",
        "of one objective. This is said once");
  }
}

}  // namespace bucket_moo
