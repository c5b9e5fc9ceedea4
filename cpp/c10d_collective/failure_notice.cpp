#include "c10d_collective/failure_notice.hpp"

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "torch_types/device.hpp"

namespace bucket_moo {
namespace {

/// Pages that no notice has.
class FreePages {
 public:
  /// Never destroyed: notices may outlive what is static.
  static FreePages& instance() {
    static auto* const instance = new FreePages;
    return *instance;
  }

  void* take() {
    const BesideCaptures beside;
    const std::lock_guard lock(mutex_);
    const auto free =
        std::find_if(pages_.begin(), pages_.end(), [](const Page& page) { return !page.used || page.used->query(); });
    void* memory = nullptr;
    if (free != pages_.end()) {
      memory = free->memory;
      pages_.erase(free);
    } else {
      check_cuda(cudaHostAlloc(&memory, sizeof(cuda::StepNotice), cudaHostAllocPortable | cudaHostAllocMapped),
                 "allocating pinned memory");
    }
    return memory;
  }

  /// \param stream whose work so far may use it
  void put(void* memory, const std::optional<c10::Stream>& stream) {
    Page page{memory, std::nullopt};
    if (stream) {
      // Torch has few streams, and hands each of them out again. While another state's graph is captured on this one,
      // an event would be the graph's, and nobody could ever ask for it: the page stays where it is.
      const c10::impl::VirtualGuardImpl impl(stream->device_type());
      if (is_capturing(static_cast<cudaStream_t>(impl.getStreamNativeHandle(*stream)))) {
        return;
      }
      page.used.emplace(stream->device_type());
      page.used->record(*stream);
    }
    const std::lock_guard lock(mutex_);
    pages_.push_back(std::move(page));
  }

 private:
  struct Page {
    void* memory;
    std::optional<c10::Event> used;  // where there are streams
  };

  std::mutex mutex_;
  std::vector<Page> pages_;
};

}  // namespace

FailureNotice::FailureNotice(c10::Device device) {
  if (device.is_cuda()) {
    stream_ = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  }
  on_host_ = new (FreePages::instance().take()) cuda::StepNotice;
  void* mapped = nullptr;
  check_cuda(cudaHostGetDevicePointer(&mapped, on_host_, 0), "mapping pinned memory");
  on_device_ = static_cast<cuda::StepNotice*>(mapped);
}

FailureNotice::~FailureNotice() {
  if (kept_) {
    return;
  }
  try {
    FreePages::instance().put(on_host_, stream_);
  } catch (const std::exception&) {  // a device that failed, or CUDA has ended before: the page stays where it is
  }
}

cuda::StepNotice FailureNotice::look() const {
  const StepError error = std::atomic_ref(on_host_->header.error).load(std::memory_order_acquire);
  return error == StepError::none ? cuda::StepNotice{} : *on_host_;
}

}  // namespace bucket_moo
