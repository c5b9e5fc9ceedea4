// What stands where a GPU's handlers would be.
#include "xla/ffi/api/ffi.h"

namespace bucket_moo::jax {
namespace {

namespace ffi = xla::ffi;

/// Takes any operands, results and attributes.
ffi::Error no_device_handler(ffi::RemainingArgs, ffi::RemainingRets) {
  return {ffi::ErrorCode::kUnimplemented,
          "bucket_moo_ext.jax is for the CPU, and was called with arrays on a GPU. Take them to the CPU with "
          "jax.device_put(array, jax.devices('cpu')[0]), or to torch by DLPack: bucket_moo_ext.aggregate"};
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(bucket_moo_jax_no_device, no_device_handler,
                              ffi::Ffi::Bind().RemainingArgs().RemainingRets());

}  // namespace bucket_moo::jax
