// Which backend reduces which tensors.
#pragma once

#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <memory>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "engine/backend.hpp"
#include "engine/engine_options.hpp"

namespace bucket_moo {

/// Whether this build reduces the tensors of a device where they are, over the caller's group, by DeviceBackend. Others
/// are HostBackend's.
bool reduces_on_device(c10::Device device);

/// A backend for tensors on `device`. `group`: where reduces_on_device(device), the caller's; else one of CPU ranks
/// that nothing else uses. Null for a single rank. `pieces`: the ranks that hold the other pieces of this rank's model,
/// as a group of the same kind; null: there are none. On the host alone.
std::shared_ptr<Backend> make_backend(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device,
                                      EngineOptions options, c10::intrusive_ptr<c10d::ProcessGroup> pieces);

}  // namespace bucket_moo
