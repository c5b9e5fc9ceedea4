// Gramians and sketches of rows.
#include "kernels/gramian.hpp"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bucket_moo/sketch.hpp"
#include "jax/buffers.hpp"
#include "jax/objectives.hpp"
#include "kernels/sketch.hpp"

namespace bucket_moo::jax {
namespace {

/// out[..., K, K] = sum over the pieces of the Gramian of the objectives' gradients there.
///
/// \param shares     [..., R] of each row in its objective
/// \param pieces     [..., R, n] each: the rows' elements, cut into pieces of any sizes and dtypes
/// \param objective  [R] of each row, in [0, K)
ffi::Error gramian_handler(ffi::AnyBuffer shares, ffi::RemainingArgs pieces, ffi::Result<ffi::AnyBuffer> out,
                           ffi::Span<const std::int64_t> objective) {
  return guarded([&] {
    const Doubles share(shares, 1);
    const Doubles gramians(*out, 2);
    const std::vector<int> number = objectives_of(objective, share.problem());
    const std::int64_t k = objective_count(number);
    require(gramians.problem() == k * k && gramians.batch() == share.batch(), "gramian must be [", k, ", ", k, "]");
    std::vector<double> of_row(number.size());
    std::vector<double> sum(static_cast<std::size_t>(k * k));
    std::vector<double> part(sum.size());
    std::vector<const void*> data(number.size());
    for (std::int64_t b = 0; b < share.batch(); ++b) {
      for (std::size_t r = 0; r < of_row.size(); ++r) of_row[r] = share.get(b * share.problem() + std::int64_t(r));
      std::fill(sum.begin(), sum.end(), 0.0);
      for (std::size_t p = 0; p < pieces.size(); ++p) {
        const auto piece = pieces.get<ffi::AnyBuffer>(p);
        require(piece.has_value(), "rows must be arrays");
        const RowsOf rows(*piece);
        require(rows.count() == share.problem() && rows.batch() == share.batch(), "rows must be [", share.problem(),
                ", n]");
        for (std::size_t r = 0; r < data.size(); ++r) data[r] = rows.row(b, static_cast<std::int64_t>(r));
        gramian({data.data(), static_cast<int>(data.size()), rows.size(), rows.dtype()},
                {number.data(), of_row.data(), static_cast<int>(k)}, part.data());
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] = p == 0 ? part[i] : sum[i] + part[i];
      }
      for (std::size_t i = 0; i < sum.size(); ++i) gramians.set(b * k * k + static_cast<std::int64_t>(i), sum[i]);
    }
  });
}

/// out[..., R, width]: the sketch of each row.
ffi::Error sketch_handler(ffi::AnyBuffer keys, ffi::AnyBuffer jacobian, ffi::Result<ffi::AnyBuffer> out) {
  return guarded([&] {
    const RowsOf rows(jacobian);
    const RowsOf columns(*out);
    check_keys(keys, rows.batch());
    require(columns.count() == rows.count() && columns.batch() == rows.batch() &&
                columns.dtype() == sketch_dtype(rows.dtype()) && is_sketch_width(columns.size()),
            "a sketch must be [", rows.count(), ", width]");
    for (std::int64_t b = 0; b < rows.batch(); ++b) {
      const SketchMap map({word_of(keys, b, 0), word_of(keys, b, 1), word_of(keys, b, 2)}, columns.size());
      for (std::int64_t r = 0; r < rows.count(); ++r) {
        sketch(rows.row(b, r), rows.size(), rows.dtype(), map, columns.row(b, r));
      }
    }
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    bucket_moo_jax_gramian, gramian_handler,
    ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().RemainingArgs().Ret<ffi::AnyBuffer>().Attr<ffi::Span<const std::int64_t>>(
        "objective"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(bucket_moo_jax_sketch, sketch_handler,
                              ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

}  // namespace bucket_moo::jax
