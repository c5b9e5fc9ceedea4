// What the device tells the host without being asked.
#pragma once

#include "step.cuh"

namespace bucket_moo {

/// What is wrong with the first step that had an error, in pinned memory: a kernel writes it there, see
/// cuda::launch_make_table(), and the host looks whenever it likes. Nothing is copied, nothing waits.
///
/// The memory, a page, is never given back: a kernel that is still to come, or a graph, may write to it when its state
/// is gone.
class FailureNotice {
 public:
  /// On the current device.
  FailureNotice();
  FailureNotice(const FailureNotice&) = delete;
  FailureNotice& operator=(const FailureNotice&) = delete;

  /// For kernels.
  cuda::StepNotice* on_device() const { return on_device_; }

  /// As far as the device has come; error == none: no step had one.
  cuda::StepNotice look() const;

 private:
  cuda::StepNotice* on_host_ = nullptr;
  cuda::StepNotice* on_device_ = nullptr;
};

}  // namespace bucket_moo
