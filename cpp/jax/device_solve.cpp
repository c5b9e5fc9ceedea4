// Weights of objectives, and what they make of each row, on a device.
#include <cstdint>
#include <string_view>

#include "batches.cuh"
#include "bucket_moo/solution.hpp"
#include "jax/calls.hpp"
#include "jax/device.hpp"
#include "solve.cuh"

namespace bucket_moo::jax {
namespace {

/// As on the host, but that a wrong weight cannot be an error without a wait for the device: see launch_shares().
ffi::Error shares_handler(Device device, ffi::AnyBuffer weights, ffi::Result<ffi::AnyBuffer> out,
                          ffi::Span<const std::int64_t> objective) {
  return enqueued(device, [&] {
    const SharesCall call(weights, *out, objective);
    const cuda::RowObjectives rows =
        row_objectives(device, call.objective, objective_count(call.objective), call.weight.batch());
    check_cuda(cuda::launch_shares(rows, numbers_of(call.weight), numbers_of(call.share), device.stream()),
               "enqueueing the shares");
  });
}

ffi::Error solve_handler(Device device, ffi::AnyBuffer keys, ffi::AnyBuffer parts, ffi::AnyBuffer shares,
                         ffi::Result<ffi::AnyBuffer> coefficients, ffi::Result<ffi::AnyBuffer> gramian,
                         ffi::Result<ffi::AnyBuffer> weights, ffi::Result<ffi::AnyBuffer> status,
                         ffi::Result<ffi::AnyBuffer> iterations, ffi::Result<ffi::AnyBuffer> residual,
                         ffi::Span<const std::int64_t> objective, std::string_view method,
                         ffi::Span<const double> numbers, std::string_view mode, ffi::Span<const double> preference,
                         ffi::Span<const std::int64_t> permutation, double length) {
  return enqueued(device, [&] {
    const SolveCall call(keys, parts, shares, {*coefficients, *gramian, *weights, *status, *iterations, *residual},
                         objective, {method, numbers, mode, preference, permutation, length});
    const cudaStream_t stream = device.stream();
    const cuda::RowObjectives rows = row_objectives(device, call.objective, call.k, call.batch());
    const int entries = rows.k * rows.k;
    double* const sum = device.scratch<double>(std::int64_t{rows.batch} * entries);
    check_cuda(cuda::launch_add_parts(numbers_of(call.part), rows.batch, as_int(call.part.problem() / entries, "parts"),
                                      entries, sum, numbers_of(call.sum), stream),
               "enqueueing the sum of Gramians");

    cuda::SolveBatch problems;
    problems.method =
        call.method.method(device.stored(call.method.preference()), device.stored(call.method.permutation()));
    problems.keys = keys_of(call.key);
    problems.batch = rows.batch;
    problems.k = rows.k;
    problems.gramians = sum;
    problems.weights = device.scratch<double>(std::int64_t{rows.batch} * rows.k);
    problems.solutions = device.scratch<Solution>(rows.batch);
    int most = 0;
    check_cuda(cuda::solve_limit(problems.method, &most), "asking for the solver's limit");
    require(rows.k <= most, "this GPU can solve this method for at most ", most, " objectives; got ", rows.k);
    check_cuda(cuda::launch_solve(problems, stream), "enqueueing the solver");

    const cuda::BatchResults results{.coefficients = numbers_of(call.coefficient),
                                     .weights = numbers_of(call.weight),
                                     .status = call.status,
                                     .iterations = call.iterations,
                                     .residual = numbers_of(call.residual)};
    check_cuda(
        cuda::launch_hand_out(rows, problems.weights, problems.solutions, numbers_of(call.share), results, stream),
        "enqueueing the results");
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(BUCKET_MOO_JAX_DEVICE_HANDLER(shares), shares_handler,
                              bind_shares(ffi::Ffi::Bind().Ctx<Device>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(BUCKET_MOO_JAX_DEVICE_HANDLER(solve), solve_handler,
                              bind_solve(ffi::Ffi::Bind().Ctx<Device>()));

}  // namespace bucket_moo::jax
