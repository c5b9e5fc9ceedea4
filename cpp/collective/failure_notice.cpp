#include "collective/failure_notice.hpp"

#include <atomic>
#include <new>

#include "torch_types/device.hpp"

namespace bucket_moo {

FailureNotice::FailureNotice() {
  void* memory = nullptr;
  check_cuda(cudaHostAlloc(&memory, sizeof(cuda::StepNotice), cudaHostAllocPortable | cudaHostAllocMapped),
             "allocating pinned memory");
  on_host_ = new (memory) cuda::StepNotice;
  check_cuda(cudaHostGetDevicePointer(&memory, on_host_, 0), "mapping pinned memory");
  on_device_ = static_cast<cuda::StepNotice*>(memory);
}

cuda::StepNotice FailureNotice::look() const {
  const StepError error = std::atomic_ref(on_host_->header.error).load(std::memory_order_acquire);
  return error == StepError::none ? cuda::StepNotice{} : *on_host_;
}

}  // namespace bucket_moo
