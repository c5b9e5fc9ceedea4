// The native DDP communication hook.
#pragma once

#include <memory>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <utility>

#include "hooks/bucket_moo_state.hpp"

namespace bucket_moo {

/// Installs on c10d::Reducer::register_comm_hook. Reduces every bucket with the state's MOO all-reduce; runs without
/// Python and holds no lock of DDP's beyond the call.
class DdpCommHook final : public c10d::CommHookInterface {
 public:
  explicit DdpCommHook(std::shared_ptr<BucketMooState> state) : state_(std::move(state)) {}

  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override;
  at::Tensor parseHookResult(const c10::IValue& result) override;

 private:
  const std::shared_ptr<BucketMooState> state_;
};

}  // namespace bucket_moo
