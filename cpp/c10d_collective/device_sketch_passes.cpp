// DeviceCollective's part for sketches in steps of several passes, and for those of which one problem is solved for all
// buckets. Sketches are exchanged pass by pass, like the rows of a small bucket; the rows themselves stay on their rank
// until their weights are known.
#include <algorithm>
#include <iterator>

#include "accumulate.cuh"
#include "c10d_collective/device_collective.hpp"
#include "combine.cuh"
#include "kernels/sketch.hpp"
#include "nvtx_range.cuh"
#include "own_rows.cuh"
#include "sketch.cuh"
#include "torch_types/dtype.hpp"

namespace bucket_moo {

using cuda::NvtxRange;

/// The step as kernels see it that know of one rank in one objective.
ObjectiveTable DeviceCollective::table_of_one() const {
  ObjectiveTable table = {};
  table.header = step_.sums().header;
  table.objective = scratch_.none;
  table.share = scratch_.one;
  return table;
}

DeviceBucket DeviceCollective::sketch_columns(DType dtype, std::int64_t width, std::int64_t index) {
  const DType type = sketch_dtype(dtype);
  const std::size_t bytes = static_cast<std::size_t>(width) * element_size(type);
  columns_.reserve(bytes);
  const at::Tensor columns = columns_.tensor(bytes).view(type == DType::float64 ? at::kDouble : at::kFloat);
  return in_place(columns, index, static_cast<std::int64_t>(bytes));
}

void DeviceCollective::accumulate_sketch(const at::Tensor& row, std::int64_t index, std::int64_t width, int pass,
                                         DeviceTile& tile) {
  cuda::SketchArguments arguments;
  arguments.dtype = dtype_of(row.scalar_type(), "a bucket");
  const DeviceBucket columns = sketch_columns(arguments.dtype, width, index);
  {
    const NvtxRange range("bucket_moo sketch");
    arguments.row = row.const_data_ptr();
    arguments.size = row.numel();
    arguments.width = width;
    arguments.seed = sketch_.seed;
    arguments.bucket = static_cast<std::uint64_t>(index);
    arguments.table = table_of_one();
    arguments.out = columns_.data();
    std::size_t bytes = 0;
    check_cuda(cuda::sketch_workspace_size(arguments.size, arguments.dtype, width, &bytes),
               "sizing the sketch's workspace");
    arguments.workspace = workspace_.reserve(bytes);
    check_cuda(cuda::launch_sketch(arguments, stream()), "enqueueing a sketch");
  }
  accumulate(columns, pass, tile);
}

void DeviceCollective::begin_own_row(cuda::OwnRow& row, int pass) {
  row.header = step_.sums().header;
  row.pass = step_.pass(pass);
  row.rank = rank();
  check_cuda(cuda::launch_begin_own_row(row, stream()), "enqueueing an addition");
}

/// `place`: whose addition has begun.
void DeviceCollective::add_row(const at::Tensor& row, const DeviceOwnRows::Place& place) {
  const cuda::OwnAddition* const addition = place.row.addition;
  cuda::AccumulateArguments arguments;
  arguments.rows.base = row.const_data_ptr();
  arguments.rows.count = 1;
  arguments.rows.size = row.numel();
  arguments.rows.dtype = dtype_of(row.scalar_type(), "a bucket");
  arguments.coefficient = &addition->coefficient;
  arguments.objective = &addition->objective;
  arguments.decay = &addition->decay;
  arguments.k = &addition->k;
  arguments.count = 1;
  arguments.reads_zeros = true;
  arguments.sums[0] = place.sum;
  check_cuda(cuda::launch_accumulate(arguments, stream()), "enqueueing an addition");
}

void DeviceCollective::add_own_row(const at::Tensor& row, const ObjectiveName& objective, int pass,
                                   DeviceOwnRows& own) {
  const NvtxRange range("bucket_moo accumulate");
  DeviceOwnRows::Place place = own.add(objective);
  begin_own_row(place.row, pass);
  add_row(row, place);
}

void DeviceCollective::add_known_row(const at::Tensor& row, int pass, const DeviceResult* known, double weight,
                                     double total, DeviceOwnRows& own) {
  const NvtxRange range("bucket_moo accumulate");
  DeviceOwnRows::Place place = own.add({});
  place.row.known = known == nullptr ? cuda::BucketResult{} : known->pointers();
  place.row.weight = weight;
  place.row.total = total;
  begin_own_row(place.row, pass);
  add_row(row, place);
}

void DeviceCollective::take_own_row(int pass, DeviceOwnRows& own) {
  DeviceOwnRows::Place place = own.take_as_it_is();
  begin_own_row(place.row, pass);
}

/// By a scaling of nothing, which is where kept weights are used in a step of one pass.
void DeviceCollective::use_kept(const DeviceResult& kept, const DeviceResult& used, bool counted) {
  cuda::ScaleArguments arguments;
  arguments.share = scratch_.one;
  arguments.kept = {.table = table_of_one(),
                    .rank = 0,
                    .kept = kept.pointers(),
                    .used = used.pointers(),
                    .counters = counted ? step_.counters() : nullptr};
  check_cuda(cuda::launch_scale(arguments, stream()), "enqueueing the use of kept weights");
}

void DeviceCollective::weigh(const int* number, const double* unit, int count, const DeviceResult& used) {
  cuda::WeightedSums sums;
  sums.sums = step_.sums();
  sums.count = count;
  sums.number = number;
  sums.unit = unit;
  sums.used = used.pointers();
  sums.coefficient = scratch_.own_coefficients;
  sums.share = scratch_.own_shares;
  check_cuda(cuda::launch_weigh_sums(sums, stream()), "enqueueing the weights of sums");
}

void DeviceCollective::combine_own_rows(const at::Tensor& output, const at::Tensor& input, const DeviceOwnRows& own,
                                        const DeviceResult& used, bool is_fresh) {
  const cuda::DeviceRows sums = own.sums();
  weigh(own.numbers(), own.units(), sums.count, used);
  const at::Tensor& row = input.defined() ? input : output;
  const DType dtype = dtype_of(row.scalar_type(), "a bucket");
  at::Tensor combined = row;
  if (input.defined()) {
    scaled_.reserve(row.nbytes());
    combined = scaled_.tensor(row.nbytes()).view(row.scalar_type());
  }
  {
    const NvtxRange range("bucket_moo combine");
    check_cuda(cuda::launch_combine(sums, combined.mutable_data_ptr(), {}, nullptr, dtype, scratch_.own_coefficients,
                                    stream(), is_fresh ? nullptr : scratch_.own_shares),
               "enqueueing a combination");
  }
  if (input.defined()) {
    const NvtxRange range("bucket_moo reduce_scatter");
    exchange_.reduce_scatter(output.as_strided({output.numel()}, {1}), combined);
  } else {
    const NvtxRange range("bucket_moo all_reduce");
    exchange_.all_reduce(combined);
  }
}

void DeviceCollective::combine_buckets(const at::Tensor& output, const at::Tensor& input, const DeviceOwnRows& own,
                                       const DeviceResult& used) {
  weigh(own.numbers(), own.units(), 1, used);
  const at::Tensor& row = input.defined() ? input : output;
  cuda::ScaleArguments arguments = scaling(row, nullptr);
  arguments.coefficient = scratch_.own_coefficients;
  arguments.share = scratch_.own_shares;
  if (input.defined()) {
    reduce_scatter_scaled(output, input, arguments);
  } else {
    all_reduce_scaled(output, arguments);
  }
}

void DeviceCollective::combine_tile(const DeviceBucket& bucket, const DeviceTile& tile, const DeviceResult& used,
                                    bool is_fresh) {
  weigh(nullptr, tile.units(), tile.objectives(), used);
  combine_tile(bucket, tile, scratch_.own_coefficients, is_fresh ? nullptr : scratch_.own_shares);
}

}  // namespace bucket_moo
