// What stands where a GPU's handlers would be.
#include "xla/ffi/api/ffi.h"

namespace bucket_moo::jax {
namespace {

namespace ffi = xla::ffi;

/// Takes any operands, results and attributes.
ffi::Error no_device_handler(ffi::RemainingArgs, ffi::RemainingRets) {
  return {ffi::ErrorCode::kUnimplemented,
          "bucket_moo_ext.jax was built without CUDA kernels or called on a GPU that is not NVIDIA's, and works on the "
          "CPU alone. Take arrays there with jax.device_put(array, jax.devices('cpu')[0]), or rebuild it where nvcc is "
          "on the PATH: pip install --no-build-isolation --force-reinstall --no-deps . (in its source folder)"};
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(bucket_moo_jax_no_device, no_device_handler,
                              ffi::Ffi::Bind().RemainingArgs().RemainingRets());

}  // namespace bucket_moo::jax
