// Weights of objectives, and what they make of each row.
#include "bucket_moo/solve.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "bucket_moo/lanes.hpp"
#include "bucket_moo/objective_table.hpp"
#include "jax/calls.hpp"

namespace bucket_moo::jax {
namespace {

ffi::Error shares_handler(ffi::AnyBuffer weights, ffi::Result<ffi::AnyBuffer> out,
                          ffi::Span<const std::int64_t> objective) {
  return guarded([&] {
    const SharesCall call(weights, *out, objective);
    const Doubles& weight = call.weight;
    const std::vector<int>& number = call.objective;
    const std::int64_t count = call.rows();
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
        call.share.set(b * count + std::int64_t(r), share[r] > 0.0 ? share[r] / sum : 0.0);
      }
    }
  });
}

ffi::Error solve_handler(ffi::AnyBuffer keys, ffi::AnyBuffer parts, ffi::AnyBuffer shares,
                         ffi::Result<ffi::AnyBuffer> coefficients, ffi::Result<ffi::AnyBuffer> gramian,
                         ffi::Result<ffi::AnyBuffer> weights, ffi::Result<ffi::AnyBuffer> status,
                         ffi::Result<ffi::AnyBuffer> iterations, ffi::Result<ffi::AnyBuffer> residual,
                         ffi::Span<const std::int64_t> objective, std::string_view method,
                         ffi::Span<const double> numbers, std::string_view mode, ffi::Span<const double> preference,
                         ffi::Span<const std::int64_t> permutation, double length) {
  return guarded([&] {
    const SolveCall call(keys, parts, shares, {*coefficients, *gramian, *weights, *status, *iterations, *residual},
                         objective, {method, numbers, mode, preference, permutation, length});
    const Doubles& part = call.part;
    const std::int64_t k = call.k;
    const Method chosen = call.method.method();
    std::vector<double> scratch(solve_scratch_size(static_cast<int>(k)));
    std::vector<double> total(static_cast<std::size_t>(k * k));
    std::vector<double> found(static_cast<std::size_t>(k));
    for (std::int64_t b = 0; b < call.batch(); ++b) {
      for (std::int64_t i = 0; i < k * k; ++i) {
        double value = part.get(b * part.problem() + i);
        for (std::int64_t p = k * k; p < part.problem(); p += k * k) value += part.get(b * part.problem() + p + i);
        total[static_cast<std::size_t>(i)] = value;
        call.sum.set(b * k * k + i, value);
      }
      const RandomKey key{word_of(keys, b, 0), word_of(keys, b, 1), word_of(keys, b, 2)};
      const Solution solution =
          solve(HostLanes{}, chosen, key, static_cast<int>(k), total.data(), found.data(), scratch.data());
      for (std::int64_t i = 0; i < k; ++i) call.weight.set(b * k + i, found[static_cast<std::size_t>(i)]);
      for (std::size_t r = 0; r < call.objective.size(); ++r) {
        const std::int64_t at = b * call.rows() + std::int64_t(r);
        call.coefficient.set(at, found[static_cast<std::size_t>(call.objective[r])] * call.share.get(at));
      }
      call.status[b] = static_cast<std::int32_t>(solution.status);
      call.iterations[b] = solution.iterations;
      call.residual.set(b, solution.residual);
    }
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(bucket_moo_jax_shares, shares_handler, bind_shares(ffi::Ffi::Bind()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(bucket_moo_jax_solve, solve_handler, bind_solve(ffi::Ffi::Bind()));

}  // namespace bucket_moo::jax
