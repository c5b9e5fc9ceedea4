// Weighted sums of rows, on a device.
#include <cstdint>

#include "batches.cuh"
#include "combine.cuh"
#include "jax/calls.hpp"
#include "jax/device.hpp"

namespace bucket_moo::jax {
namespace {

/// In float64, as the kernel wants them.
const double* coefficients_of(Device& device, const Doubles& coefficient) {
  const cuda::Numbers given = numbers_of(coefficient);
  if (!given.single) return static_cast<const double*>(given.data);
  const std::int64_t count = coefficient.batch() * coefficient.problem();
  double* const converted = device.scratch<double>(count);
  check_cuda(cuda::launch_convert(given, count, {converted, false}, device.stream()), "enqueueing the coefficients");
  return converted;
}

ffi::Error combine_handler(Device device, ffi::AnyBuffer coefficients, ffi::AnyBuffer jacobian,
                           ffi::Result<ffi::AnyBuffer> out) {
  return enqueued(device, [&] {
    const CombineCall call(coefficients, jacobian, *out);
    const double* const coefficient = coefficients_of(device, call.coefficient);
    for (std::int64_t b = 0; b < call.rows.batch(); ++b) {
      check_cuda(cuda::launch_combine(device_rows(call.rows, b), coefficient + b * call.rows.count(), call.update_of(b),
                                      device.stream()),
                 "enqueueing the combination");
    }
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(BUCKET_MOO_JAX_DEVICE_HANDLER(combine), combine_handler,
                              bind_combine(ffi::Ffi::Bind().Ctx<Device>()));

}  // namespace bucket_moo::jax
