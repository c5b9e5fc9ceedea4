// What the device tells the host without being asked.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include <optional>

#include "step.cuh"

namespace bucket_moo {

/// What is wrong with the first step that had an error, in pinned memory: a kernel writes it there, see
/// cuda::launch_make_table(), and the host looks whenever it likes. Nothing is copied, nothing waits.
///
/// The memory, a page, serves the next notice once the stream is past what may still write to it; to free it would wait
/// for the device, which may wait for a rank that is gone. There are as many pages as there were notices at a time.
class FailureNotice {
 public:
  /// On the current device. For kernels on the current stream alone.
  explicit FailureNotice(c10::Device device);
  ~FailureNotice();
  FailureNotice(const FailureNotice&) = delete;
  FailureNotice& operator=(const FailureNotice&) = delete;

  /// A graph may write to it at any time: the page is never used again.
  void keep() { kept_ = true; }

  /// For kernels.
  cuda::StepNotice* on_device() const { return on_device_; }

  /// As far as the device has come; error == none: no step had one.
  cuda::StepNotice look() const;

 private:
  std::optional<c10::Stream> stream_;
  cuda::StepNotice* on_host_ = nullptr;
  cuda::StepNotice* on_device_ = nullptr;
  bool kept_ = false;
};

}  // namespace bucket_moo
