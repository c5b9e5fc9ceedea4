// Weights of objectives, and what they make of each row.
#include "bucket_moo/solve.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

#include "bucket_moo/lanes.hpp"
#include "bucket_moo/objective_table.hpp"
#include "jax/buffers.hpp"
#include "jax/objectives.hpp"
#include "methods/method_config.hpp"

namespace bucket_moo::jax {
namespace {

template <class Value>
std::span<const Value> as_span(ffi::Span<const Value> given) {
  return {given.begin(), given.size()};
}

/// shares[..., R]: each row's weight over the sum of weights in its objective; 0: left out.
ffi::Error shares_handler(ffi::AnyBuffer weights, ffi::Result<ffi::AnyBuffer> out,
                          ffi::Span<const std::int64_t> objective) {
  return guarded([&] {
    const Doubles weight(weights, 1);
    const Doubles shares(*out, 1);
    const std::int64_t count = weight.problem();
    const std::vector<int> number = objectives_of(objective, count);
    require(shares.problem() == count && shares.batch() == weight.batch(), "shares must be [", count, "]");
    for (std::int64_t b = 0; b < weight.batch(); ++b) {
      std::array<double, kMaxObjectives> largest{};
      for (std::int64_t r = 0; r < count; ++r) {
        const double value = weight.get(b * count + r);
        require(std::isfinite(value) && value >= 0.0, "weight must be a finite number >= 0; row ", r, " has ", value);
        double& most = largest[static_cast<std::size_t>(number[static_cast<std::size_t>(r)])];
        if (value > most) most = value;
      }
      // As the ranks of the collective have it: see make_objective_table().
      std::array<double, kMaxObjectives> total{};
      std::vector<double> share(number.size());
      for (std::size_t r = 0; r < share.size(); ++r) {
        const auto k = static_cast<std::size_t>(number[r]);
        const double relative = largest[k] > 0.0 ? weight.get(b * count + std::int64_t(r)) / largest[k] : 0.0;
        share[r] = relative >= kSmallestShare ? relative : 0.0;
        total[k] += share[r];
      }
      for (std::size_t r = 0; r < share.size(); ++r) {
        const double sum = total[static_cast<std::size_t>(number[r])];
        shares.set(b * count + std::int64_t(r), share[r] > 0.0 ? share[r] / sum : 0.0);
      }
    }
  });
}

/// Solves for the sum of Gramians.
///
/// \param keys       [..., 6], see word_of()
/// \param parts      [..., P, K, K], summed in their order
/// \param shares     [..., R]
/// \param objective  [R]
///
/// \param coefficients  [..., R] out: of each row in the update
/// \param gramian       [..., K, K] out: the sum
/// \param weights       [..., K], residual [...] out; status and iterations [...] int32, out
ffi::Error solve_handler(ffi::AnyBuffer keys, ffi::AnyBuffer parts, ffi::AnyBuffer shares,
                         ffi::Result<ffi::AnyBuffer> coefficients, ffi::Result<ffi::AnyBuffer> gramian,
                         ffi::Result<ffi::AnyBuffer> weights, ffi::Result<ffi::AnyBuffer> status,
                         ffi::Result<ffi::AnyBuffer> iterations, ffi::Result<ffi::AnyBuffer> residual,
                         ffi::Span<const std::int64_t> objective, std::string_view method,
                         ffi::Span<const double> numbers, std::string_view mode, ffi::Span<const double> preference,
                         ffi::Span<const std::int64_t> permutation, double length) {
  return guarded([&] {
    const Doubles part(parts, 3);
    const Doubles share(shares, 1);
    const Doubles coefficient(*coefficients, 1);
    const Doubles sum(*gramian, 2);
    const Doubles weight(*weights, 1);
    const Doubles residuals(*residual, 0);
    const std::vector<int> number = objectives_of(objective, share.problem());
    const std::int64_t k = objective_count(number);
    const std::int64_t batch = part.batch();
    check_keys(keys, batch);
    require(part.problem() % (k * k) == 0 && sum.problem() == k * k && weight.problem() == k &&
                coefficient.problem() == share.problem() && share.batch() == batch,
            "gramian must be [", k, ", ", k, "]");
    require(status->element_type() == ffi::S32 && iterations->element_type() == ffi::S32,
            "status and iterations must be int32");
    const MethodConfig config = MethodConfig({.name = method,
                                              .numbers = as_span(numbers),
                                              .mode = mode,
                                              .preference = as_span(preference),
                                              .permutation = as_span(permutation)})
                                    .rescaled(length_of(length));
    config.check(static_cast<int>(k));
    const Method chosen = config.method();
    std::vector<double> scratch(solve_scratch_size(static_cast<int>(k)));
    std::vector<double> total(static_cast<std::size_t>(k * k));
    std::vector<double> found(static_cast<std::size_t>(k));
    auto* const statuses = static_cast<std::int32_t*>(status->untyped_data());
    auto* const changes = static_cast<std::int32_t*>(iterations->untyped_data());
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t i = 0; i < k * k; ++i) {
        double value = part.get(b * part.problem() + i);
        for (std::int64_t p = k * k; p < part.problem(); p += k * k) value += part.get(b * part.problem() + p + i);
        total[static_cast<std::size_t>(i)] = value;
        sum.set(b * k * k + i, value);
      }
      const RandomKey key{word_of(keys, b, 0), word_of(keys, b, 1), word_of(keys, b, 2)};
      const Solution solution =
          solve(HostLanes{}, chosen, key, static_cast<int>(k), total.data(), found.data(), scratch.data());
      for (std::int64_t i = 0; i < k; ++i) weight.set(b * k + i, found[static_cast<std::size_t>(i)]);
      for (std::size_t r = 0; r < number.size(); ++r) {
        const std::int64_t at = b * share.problem() + std::int64_t(r);
        coefficient.set(at, found[static_cast<std::size_t>(number[r])] * share.get(at));
      }
      statuses[b] = static_cast<std::int32_t>(solution.status);
      changes[b] = solution.iterations;
      residuals.set(b, solution.residual);
    }
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    bucket_moo_jax_shares, shares_handler,
    ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>().Attr<ffi::Span<const std::int64_t>>("objective"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(bucket_moo_jax_solve, solve_handler,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<ffi::Span<const std::int64_t>>("objective")
                                  .Attr<std::string_view>("method")
                                  .Attr<ffi::Span<const double>>("numbers")
                                  .Attr<std::string_view>("mode")
                                  .Attr<ffi::Span<const double>>("preference")
                                  .Attr<ffi::Span<const std::int64_t>>("permutation")
                                  .Attr<double>("length"));

}  // namespace bucket_moo::jax
