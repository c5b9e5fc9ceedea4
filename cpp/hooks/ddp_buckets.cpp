#include "hooks/ddp_buckets.hpp"

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
    engine_->begin_step();
  }
  const std::vector<at::Tensor> parameters = bucket.getParameters();
  Reduction reduction{.operation = Operation::ddp_bucket,
                      .output = bucket.getBufferRef(),
                      .input = {},
                      .bucket = names_.bucket_of(parameters),
                      .tile_limit = tile_limit(parameters)};
  engine_->check(reduction);
  check_kept_gradients(reduction, parameters, starts_pass);
  FuturePtr done = engine_->reduce(std::move(reduction), std::move(result));
  if (bucket.isLast()) {
    engine_->end_step();
  }
  return done;
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
        "backward passes, or run all but the last one of an accumulation under no_sync(). This is said once");
  }
}

}  // namespace bucket_moo
