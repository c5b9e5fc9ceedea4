// Gramians and sketches of rows.
#include "kernels/gramian.hpp"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bucket_moo/sketch.hpp"
#include "jax/calls.hpp"
#include "kernels/sketch.hpp"

namespace bucket_moo::jax {
namespace {

ffi::Error gramian_handler(ffi::AnyBuffer shares, ffi::RemainingArgs pieces, ffi::Result<ffi::AnyBuffer> out,
                           ffi::Span<const std::int64_t> objective, bool /*replicated*/) {
  return guarded([&] {
    const GramianCall call(shares, pieces, *out, objective);
    const Doubles& share = call.share;
    const std::int64_t k = call.k;
    std::vector<double> of_row(call.objective.size());
    std::vector<double> sum(static_cast<std::size_t>(k * k));
    std::vector<double> part(sum.size());
    std::vector<const void*> data(of_row.size());
    for (std::int64_t b = 0; b < share.batch(); ++b) {
      for (std::size_t r = 0; r < of_row.size(); ++r) of_row[r] = share.get(b * share.problem() + std::int64_t(r));
      std::fill(sum.begin(), sum.end(), 0.0);
      for (std::size_t p = 0; p < call.pieces.size(); ++p) {
        const RowsOf& rows = call.pieces[p];
        for (std::size_t r = 0; r < data.size(); ++r) data[r] = rows.row(b, static_cast<std::int64_t>(r));
        gramian({data.data(), static_cast<int>(data.size()), rows.size(), rows.dtype()},
                {call.objective.data(), of_row.data(), static_cast<int>(k)}, part.data());
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] = p == 0 ? part[i] : sum[i] + part[i];
      }
      for (std::size_t i = 0; i < sum.size(); ++i) call.gramian.set(b * k * k + static_cast<std::int64_t>(i), sum[i]);
    }
  });
}

ffi::Error sketch_handler(ffi::AnyBuffer keys, ffi::AnyBuffer jacobian, ffi::Result<ffi::AnyBuffer> out) {
  return guarded([&] {
    const SketchCall call(keys, jacobian, *out);
    const RowsOf& rows = call.rows;
    for (std::int64_t b = 0; b < rows.batch(); ++b) {
      const SketchMap map({word_of(keys, b, 0), word_of(keys, b, 1), word_of(keys, b, 2)}, call.columns.size());
      for (std::int64_t r = 0; r < rows.count(); ++r) {
        sketch(rows.row(b, r), rows.size(), rows.dtype(), map, call.columns.row(b, r));
      }
    }
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(bucket_moo_jax_gramian, gramian_handler, bind_gramian(ffi::Ffi::Bind()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(bucket_moo_jax_sketch, sketch_handler, bind_sketch(ffi::Ffi::Bind()));

}  // namespace bucket_moo::jax
