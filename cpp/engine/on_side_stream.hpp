// Where a device backend enqueues.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/StreamGuard.h>

#include "c10d_collective/device_memory.hpp"
#include "torch_types/device.hpp"

namespace bucket_moo {

/// Makes device and side stream current, for its scope.
class OnSideStream {
 public:
  OnSideStream(c10::Device device, const SideStream& side) : device_(device), stream_(side.stream()) {}

 private:
  KernelDeviceGuard device_;
  c10::StreamGuard stream_;
};

}  // namespace bucket_moo
