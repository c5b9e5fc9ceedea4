// Gramians and sketches of rows, on a device.
#include <cstddef>
#include <cstdint>

#include "batches.cuh"
#include "bucket_moo/packed_triangle.hpp"
#include "gramian.cuh"
#include "jax/calls.hpp"
#include "jax/device.hpp"
#include "sketch.cuh"

namespace bucket_moo::jax {
namespace {

/// The tables that the Gramian's kernels go by.
cuda::ObjectiveTables tables_of(Device& device, const cuda::RowObjectives& rows, const Doubles& share) {
  const std::int64_t count = static_cast<std::int64_t>(rows.batch) * rows.rows;
  cuda::ObjectiveTables tables;
  tables.header = device.scratch<StepHeader>(rows.batch);
  tables.leader = device.scratch<int>(count);
  tables.share = device.scratch<double>(count);
  tables.begin = device.scratch<int>(count + rows.batch);
  tables.member = device.scratch<int>(count);
  check_cuda(cuda::launch_tables(rows, numbers_of(share), tables, device.stream()), "enqueueing the objectives");
  return tables;
}

ffi::Error gramian_handler(Device device, ffi::AnyBuffer shares, ffi::RemainingArgs pieces,
                           ffi::Result<ffi::AnyBuffer> out, ffi::Span<const std::int64_t> objective, bool replicated) {
  return enqueued(device, [&] {
    const GramianCall call(shares, pieces, *out, objective);
    const cuda::RowObjectives rows = row_objectives(device, call.objective, call.k, call.share.batch());
    if (rows.batch == 0) return;
    const cudaStream_t stream = device.stream();
    const cuda::ObjectiveTables tables = tables_of(device, rows, call.share);
    const int entries = packed_size(rows.k);
    double* const packed = device.scratch<double>(std::int64_t{rows.batch} * entries);
    std::size_t bytes = 0;
    check_cuda(cuda::gramian_workspace_size(rows.rows < kMaxObjectives ? rows.rows : kMaxObjectives, &bytes),
               "sizing the Gramian's workspace");
    cuda::GramianArguments arguments;
    arguments.likely_k = rows.k;
    arguments.grid = replicated ? cuda::Grid::fixed : cuda::Grid::device;
    arguments.workspace = device.scratch<std::byte>(static_cast<std::int64_t>(bytes));
    arguments.tickets = device.scratch<unsigned>(cuda::kGramianTickets);
    check_cuda(cudaMemsetAsync(arguments.tickets, 0, cuda::kGramianTickets * sizeof(unsigned), stream),
               "clearing the Gramian's tickets");
    if (call.pieces.empty()) {
      check_cuda(cudaMemsetAsync(packed, 0, sizeof(double) * static_cast<std::size_t>(rows.batch * entries), stream),
                 "clearing the Gramian");
    }
    for (std::int64_t b = 0; b < rows.batch; ++b) {
      arguments.table = tables.table(rows, b);
      arguments.packed = packed + b * entries;
      arguments.add = false;
      for (const RowsOf& piece : call.pieces) {
        arguments.rows = device_rows(piece, b);
        check_cuda(cuda::launch_gramian(arguments, stream), "enqueueing the Gramian");
        arguments.add = true;
      }
    }
    check_cuda(cuda::launch_unpack_gramians(packed, rows.batch, rows.k, numbers_of(call.gramian), stream),
               "enqueueing the Gramian's unpacking");
  });
}

ffi::Error sketch_handler(Device device, ffi::AnyBuffer keys, ffi::AnyBuffer jacobian,
                          ffi::Result<ffi::AnyBuffer> out) {
  return enqueued(device, [&] {
    const SketchCall call(keys, jacobian, *out);
    const RowsOf& rows = call.rows;
    std::size_t bytes = 0;
    check_cuda(cuda::sketch_workspace_size(rows.size(), rows.dtype(), call.columns.size(), &bytes),
               "sizing the sketch's workspace");
    cuda::SketchArguments arguments;
    arguments.size = rows.size();
    arguments.dtype = rows.dtype();
    arguments.width = call.columns.size();
    arguments.workspace = device.scratch<std::byte>(static_cast<std::int64_t>(bytes));  // of one row after the other
    const RandomKey* const key = keys_of(call.key);
    for (std::int64_t b = 0; b < rows.batch(); ++b) {
      arguments.key = key + b;
      for (std::int64_t r = 0; r < rows.count(); ++r) {
        arguments.row = rows.row(b, r);
        arguments.out = call.columns.row(b, r);
        check_cuda(cuda::launch_sketch(arguments, device.stream()), "enqueueing the sketch");
      }
    }
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(BUCKET_MOO_JAX_DEVICE_HANDLER(gramian), gramian_handler,
                              bind_gramian(ffi::Ffi::Bind().Ctx<Device>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(BUCKET_MOO_JAX_DEVICE_HANDLER(sketch), sketch_handler,
                              bind_sketch(ffi::Ffi::Bind().Ctx<Device>()));

}  // namespace bucket_moo::jax
