// Weighted sums of rows.
#include "kernels/combine.hpp"

#include <cstdint>
#include <vector>

#include "jax/buffers.hpp"

namespace bucket_moo::jax {
namespace {

/// out[..., n] = sum over the rows of coefficients[..., R] * rows[..., R, n]
ffi::Error combine_handler(ffi::AnyBuffer coefficients, ffi::AnyBuffer jacobian, ffi::Result<ffi::AnyBuffer> out) {
  return guarded([&] {
    const Doubles coefficient(coefficients, 1);
    const RowsOf rows(jacobian);
    require(coefficient.problem() == rows.count() && coefficient.batch() == rows.batch(), "weights must be [",
            rows.count(), "], one a row");
    require(
        dtype_of(*out) == rows.dtype() && size_from_last(*out, 0) == rows.size() && batch_of(*out, 1) == rows.batch(),
        "the update must be [", rows.size(), "] in the rows' dtype");
    std::vector<double> of_row(static_cast<std::size_t>(rows.count()));
    std::vector<const void*> data(of_row.size());
    auto* const updates = static_cast<std::byte*>(out->untyped_data());
    const std::int64_t bytes = rows.size() * static_cast<std::int64_t>(element_size(rows.dtype()));
    for (std::int64_t b = 0; b < rows.batch(); ++b) {
      for (std::size_t r = 0; r < data.size(); ++r) {
        data[r] = rows.row(b, static_cast<std::int64_t>(r));
        of_row[r] = coefficient.get(b * rows.count() + static_cast<std::int64_t>(r));
      }
      combine({data.data(), static_cast<int>(data.size()), rows.size(), rows.dtype()}, of_row.data(),
              updates + b * bytes);
    }
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(bucket_moo_jax_combine, combine_handler,
                              ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

}  // namespace bucket_moo::jax
