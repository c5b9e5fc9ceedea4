// The native DDP communication hook.
#pragma once

#include <memory>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <utility>

#include "hooks/ddp_buckets.hpp"

namespace bucket_moo {

/// Installs on c10d::Reducer::register_comm_hook. Reduces every bucket with a MOO all-reduce; runs without Python and
/// holds no lock of DDP's beyond the call.
class DdpCommHook final : public c10d::CommHookInterface {
 public:
  explicit DdpCommHook(std::shared_ptr<DdpBuckets> buckets) : buckets_(std::move(buckets)) {}

  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override { return buckets_->run(bucket); }
  at::Tensor parseHookResult(const c10::IValue& result) override { return result.toTensor(); }

 private:
  const std::shared_ptr<DdpBuckets> buckets_;
};

}  // namespace bucket_moo
