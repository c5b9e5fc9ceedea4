#include "engine/make_backend.hpp"

#include <c10/util/Exception.h>

#include <utility>

#include "engine/host_backend.hpp"
#if BUCKET_MOO_CUDA
#include "engine/device_backend.hpp"
#include "torch_types/device.hpp"
#endif

namespace bucket_moo {

#if BUCKET_MOO_CUDA

bool reduces_on_device(c10::Device device) { return is_kernel_device(device); }

std::shared_ptr<Backend> make_backend(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device,
                                      EngineOptions options, c10::intrusive_ptr<c10d::ProcessGroup> pieces) {
  TORCH_CHECK_NOT_IMPLEMENTED(!options.grid.has_levels() || !options.sketch.enabled(),
                              "bucket_moo_ext: reductions in two levels are supported with the exact Gramian");
  TORCH_CHECK_NOT_IMPLEMENTED(!options.grouping.has_parts() || !options.sketch.enabled(),
                              "bucket_moo_ext: parts of buckets with weights of their own are supported with the exact "
                              "Gramian");
  if (reduces_on_device(device)) {
    TORCH_CHECK_NOT_IMPLEMENTED(!options.takes_row_norms,
                                "bucket_moo_ext: row_norms=True is supported for reductions in host memory alone");
    return std::make_shared<DeviceBackend>(std::move(group), device, std::move(options), std::move(pieces));
  }
  return HostBackend::make(std::move(group), std::move(options), std::move(pieces));
}

#else

bool reduces_on_device(c10::Device) { return false; }

std::shared_ptr<Backend> make_backend(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device, EngineOptions options,
                                      c10::intrusive_ptr<c10d::ProcessGroup> pieces) {
  return HostBackend::make(std::move(group), std::move(options), std::move(pieces));
}

#endif

}  // namespace bucket_moo
