// What XLA hands to each handler, checked: the same on the host and on a device. Data is not read, but for attributes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "bucket_moo/sketch.hpp"
#include "jax/buffers.hpp"
#include "jax/objectives.hpp"
#include "kernels/sketch.hpp"
#include "methods/method_config.hpp"

namespace bucket_moo::jax {

// --- shares ---

/// shares[..., R]: each row's weight over the sum of weights in its objective; 0: left out.
struct SharesCall {
  SharesCall(ffi::AnyBuffer weights, ffi::AnyBuffer out, ffi::Span<const std::int64_t> number)
      : weight(weights, 1), share(out, 1), objective(objectives_of(number, weight.problem())) {
    require(share.problem() == weight.problem() && share.batch() == weight.batch(), "shares must be [",
            weight.problem(), "]");
  }

  std::int64_t rows() const { return weight.problem(); }

  Doubles weight;
  Doubles share;
  std::vector<int> objective;
};

template <class Bind>
auto bind_shares(Bind bind) {
  return std::move(bind)
      .template Arg<ffi::AnyBuffer>()
      .template Ret<ffi::AnyBuffer>()
      .template Attr<ffi::Span<const std::int64_t>>("objective");
}

// --- gramian ---

/// out[..., K, K] = sum over the pieces of the Gramian of the objectives' gradients there.
///
/// \param shares     [..., R] of each row in its objective
/// \param pieces     [..., R, n] each: the rows' elements, cut into pieces of any sizes and dtypes
/// \param objective  [R] of each row, in [0, K)
/// \param replicated whether several devices compute it, which must get the same bits though they be different models
struct GramianCall {
  GramianCall(ffi::AnyBuffer shares, ffi::RemainingArgs given, ffi::AnyBuffer out, ffi::Span<const std::int64_t> number)
      : share(shares, 1),
        gramian(out, 2),
        objective(objectives_of(number, share.problem())),
        k(objective_count(objective)) {
    require(gramian.problem() == k * k && gramian.batch() == share.batch(), "gramian must be [", k, ", ", k, "]");
    for (std::size_t p = 0; p < given.size(); ++p) {
      const auto piece = given.get<ffi::AnyBuffer>(p);
      require(piece.has_value(), "rows must be arrays");
      pieces.emplace_back(*piece);
      require(pieces.back().count() == share.problem() && pieces.back().batch() == share.batch(), "rows must be [",
              share.problem(), ", n]");
    }
  }

  Doubles share;
  Doubles gramian;
  std::vector<int> objective;
  std::int64_t k;
  std::vector<RowsOf> pieces;
};

template <class Bind>
auto bind_gramian(Bind bind) {
  return std::move(bind)
      .template Arg<ffi::AnyBuffer>()
      .RemainingArgs()
      .template Ret<ffi::AnyBuffer>()
      .template Attr<ffi::Span<const std::int64_t>>("objective")
      .template Attr<bool>("replicated");
}

// --- sketch ---

/// out[..., R, width]: the sketch of each row.
struct SketchCall {
  SketchCall(ffi::AnyBuffer keys, ffi::AnyBuffer jacobian, ffi::AnyBuffer out)
      : key(keys), rows(jacobian), columns(out) {
    check_keys(keys, rows.batch());
    require(columns.count() == rows.count() && columns.batch() == rows.batch() &&
                columns.dtype() == sketch_dtype(rows.dtype()) && is_sketch_width(columns.size()),
            "a sketch must be [", rows.count(), ", width]");
  }

  ffi::AnyBuffer key;
  RowsOf rows;
  RowsOf columns;
};

template <class Bind>
auto bind_sketch(Bind bind) {
  return std::move(bind).template Arg<ffi::AnyBuffer>().template Arg<ffi::AnyBuffer>().template Ret<ffi::AnyBuffer>();
}

// --- combine ---

/// out[..., n] = sum over the rows of coefficients[..., R] * rows[..., R, n]
struct CombineCall {
  CombineCall(ffi::AnyBuffer coefficients, ffi::AnyBuffer jacobian, ffi::AnyBuffer out)
      : coefficient(coefficients, 1), rows(jacobian), update(static_cast<std::byte*>(out.untyped_data())) {
    require(coefficient.problem() == rows.count() && coefficient.batch() == rows.batch(), "weights must be [",
            rows.count(), "], one a row");
    require(dtype_of(out) == rows.dtype() && size_from_last(out, 0) == rows.size() && batch_of(out, 1) == rows.batch(),
            "the update must be [", rows.size(), "] in the rows' dtype");
  }

  /// Of one problem.
  std::byte* update_of(std::int64_t problem) const {
    return update + problem * rows.size() * static_cast<std::int64_t>(element_size(rows.dtype()));
  }

  Doubles coefficient;
  RowsOf rows;
  std::byte* update;
};

template <class Bind>
auto bind_combine(Bind bind) {
  return std::move(bind).template Arg<ffi::AnyBuffer>().template Arg<ffi::AnyBuffer>().template Ret<ffi::AnyBuffer>();
}

// --- solve ---

template <class Value>
std::span<const Value> as_span(ffi::Span<const Value> given) {
  return {given.begin(), given.size()};
}

/// A method as attributes have it, see MethodOptions.
struct MethodAttributes {
  std::string_view method;
  ffi::Span<const double> numbers;
  std::string_view mode;
  ffi::Span<const double> preference;
  ffi::Span<const std::int64_t> permutation;
  double length;
};

/// Buffers that solve writes.
struct SolveResults {
  ffi::AnyBuffer coefficients;  ///< [..., R] of each row in the update
  ffi::AnyBuffer gramian;       ///< [..., K, K] the sum
  ffi::AnyBuffer weights;       ///< [..., K]
  ffi::AnyBuffer status;        ///< [...] int32, as iterations
  ffi::AnyBuffer iterations;
  ffi::AnyBuffer residual;  ///< [...]
};

/// Solves for the sum of Gramians.
///
/// \param keys       [..., 6], see word_of()
/// \param parts      [..., P, K, K], summed in their order
/// \param shares     [..., R]
/// \param objective  [R]
struct SolveCall {
  SolveCall(ffi::AnyBuffer keys, ffi::AnyBuffer parts, ffi::AnyBuffer shares, const SolveResults& out,
            ffi::Span<const std::int64_t> number, const MethodAttributes& given)
      : key(keys),
        part(parts, 3),
        share(shares, 1),
        coefficient(out.coefficients, 1),
        sum(out.gramian, 2),
        weight(out.weights, 1),
        residual(out.residual, 0),
        status(static_cast<std::int32_t*>(out.status.untyped_data())),
        iterations(static_cast<std::int32_t*>(out.iterations.untyped_data())),
        objective(objectives_of(number, share.problem())),
        k(objective_count(objective)),
        method(MethodConfig({.name = given.method,
                             .numbers = as_span(given.numbers),
                             .mode = given.mode,
                             .preference = as_span(given.preference),
                             .permutation = as_span(given.permutation)})
                   .rescaled(length_of(given.length))) {
    check_keys(key, batch());
    require(part.problem() % (k * k) == 0 && part.problem() > 0 && sum.problem() == k * k && weight.problem() == k &&
                coefficient.problem() == rows() && share.batch() == batch(),
            "gramian must be [", k, ", ", k, "]");
    require(out.status.element_type() == ffi::S32 && out.iterations.element_type() == ffi::S32,
            "status and iterations must be int32");
    method.check(static_cast<int>(k));
  }

  std::int64_t batch() const { return part.batch(); }
  std::int64_t rows() const { return share.problem(); }

  ffi::AnyBuffer key;
  Doubles part;
  Doubles share;
  Doubles coefficient;
  Doubles sum;
  Doubles weight;
  Doubles residual;
  std::int32_t* status;
  std::int32_t* iterations;
  std::vector<int> objective;
  std::int64_t k;
  MethodConfig method;
};

template <class Bind>
auto bind_solve(Bind bind) {
  return std::move(bind)
      .template Arg<ffi::AnyBuffer>()
      .template Arg<ffi::AnyBuffer>()
      .template Arg<ffi::AnyBuffer>()
      .template Ret<ffi::AnyBuffer>()
      .template Ret<ffi::AnyBuffer>()
      .template Ret<ffi::AnyBuffer>()
      .template Ret<ffi::AnyBuffer>()
      .template Ret<ffi::AnyBuffer>()
      .template Ret<ffi::AnyBuffer>()
      .template Attr<ffi::Span<const std::int64_t>>("objective")
      .template Attr<std::string_view>("method")
      .template Attr<ffi::Span<const double>>("numbers")
      .template Attr<std::string_view>("mode")
      .template Attr<ffi::Span<const double>>("preference")
      .template Attr<ffi::Span<const std::int64_t>>("permutation")
      .template Attr<double>("length");
}

}  // namespace bucket_moo::jax
