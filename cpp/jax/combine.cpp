// Weighted sums of rows.
#include "kernels/combine.hpp"

#include <cstdint>
#include <vector>

#include "jax/calls.hpp"

namespace bucket_moo::jax {
namespace {

ffi::Error combine_handler(ffi::AnyBuffer coefficients, ffi::AnyBuffer jacobian, ffi::Result<ffi::AnyBuffer> out) {
  return guarded([&] {
    const CombineCall call(coefficients, jacobian, *out);
    const RowsOf& rows = call.rows;
    std::vector<double> of_row(static_cast<std::size_t>(rows.count()));
    std::vector<const void*> data(of_row.size());
    for (std::int64_t b = 0; b < rows.batch(); ++b) {
      for (std::size_t r = 0; r < data.size(); ++r) {
        data[r] = rows.row(b, static_cast<std::int64_t>(r));
        of_row[r] = call.coefficient.get(b * rows.count() + static_cast<std::int64_t>(r));
      }
      combine({data.data(), static_cast<int>(data.size()), rows.size(), rows.dtype()}, of_row.data(),
              call.update_of(b));
    }
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(bucket_moo_jax_combine, combine_handler, bind_combine(ffi::Ffi::Bind()));

}  // namespace bucket_moo::jax
