#include "hooks/ddp_comm_hook.hpp"

namespace bucket_moo {

c10::intrusive_ptr<c10::ivalue::Future> DdpCommHook::runHook(c10d::GradBucket& bucket) {
  return state_->run_bucket(bucket);
}

at::Tensor DdpCommHook::parseHookResult(const c10::IValue& result) { return result.toTensor(); }

}  // namespace bucket_moo
