// Which state reduces which tensors.
#pragma once

#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "hooks/bucket_moo_state.hpp"

namespace bucket_moo {

/// Whether this build reduces the tensors of a device where they are, over the caller's group, by DeviceState. Others
/// are HostState's.
bool reduces_on_device(c10::Device device);

/// A new state for tensors on `device`; the caller owns it. `group`: where reduces_on_device(device), the caller's;
/// else one of CPU ranks that nothing else uses. Null for a single rank.
BucketMooState* make_state(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device, StateOptions options);

}  // namespace bucket_moo
