#include "hooks/make_state.hpp"

#include <utility>

#include "hooks/host_state.hpp"
#if BUCKET_MOO_CUDA
#include "hooks/device_state.hpp"
#include "torch_types/device.hpp"
#endif

namespace bucket_moo {

#if BUCKET_MOO_CUDA

bool reduces_on_device(c10::Device device) { return is_kernel_device(device); }

BucketMooState* make_state(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device, StateOptions options) {
  if (reduces_on_device(device)) {
    return new DeviceState(std::move(group), device, std::move(options));
  }
  return new HostState(std::move(group), std::move(options));
}

#else

bool reduces_on_device(c10::Device) { return false; }

BucketMooState* make_state(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device, StateOptions options) {
  return new HostState(std::move(group), std::move(options));
}

#endif

}  // namespace bucket_moo
