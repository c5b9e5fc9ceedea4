#include "c10d_collective/device_collective.hpp"

#include <ATen/Functions.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <utility>

#include "accumulate.cuh"
#include "bucket_moo/limits.hpp"
#include "bucket_moo/packed_triangle.hpp"
#include "bucket_moo/state_layout.hpp"
#include "collective/agreed_error.hpp"
#include "collective/shard_layout.hpp"
#include "combine.cuh"
#include "gramian.cuh"
#include "kernels/sketch.hpp"
#include "nvtx_range.cuh"
#include "passes.cuh"
#include "sketch.cuh"
#include "solve.cuh"
#include "step.cuh"
#include "torch_types/dtype.hpp"

namespace bucket_moo {
namespace {

using cuda::NvtxRange;

/// Not view(): a contiguous tensor of one element may have any stride.
at::Tensor as_bytes(const at::Tensor& tensor) { return tensor.as_strided({tensor.numel()}, {1}).view(at::kByte); }

StepRules complete(StepRules rules, const Method& method, const SketchOptions& sketch) {
  rules.is_sketched = sketch.enabled();
  rules.remembers_names = state_size(method, 1) > 0;
  return rules;
}

std::byte* bytes_of(const at::Tensor& tensor) { return static_cast<std::byte*>(tensor.mutable_data_ptr()); }

}  // namespace

DeviceCollective::DeviceCollective(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device,
                                   const Method& method, std::uint64_t seed, const SketchOptions& sketch,
                                   StepRules rules, const RankGrid& grid, const GridGroups& groups,
                                   c10::intrusive_ptr<c10d::ProcessGroup> pieces)
    : all_(group, device),
      exchange_(grid.has_levels() ? groups.across : std::move(group), device),
      pieces_(std::move(pieces), device),
      device_(device),
      method_(method),
      seed_(seed),
      sketch_(sketch),
      step_(all_, device, complete(rules, method, sketch), grid, pieces_),
      scratch_buffer_(device),
      tile_(device),
      outgoing_(device),
      messages_(device),
      scaled_(device),
      columns_(device),
      workspace_(device),
      from_pieces_(device) {
  if (grid.has_levels()) {
    TORCH_CHECK_VALUE(world_size() == grid.across() && rank() == grid.across_of(all_.rank()),
                      "bucket_moo_ext: the group of ranks with different objectives must have the ", grid.across(),
                      " ranks of the grid, in its order; got rank ", rank(), " of ", world_size());
    inside_.emplace(groups.inside, device, grid, all_.rank());
  }
  MemoryLayout needed(nullptr);
  lay_out(needed, world_size());
  MemoryLayout layout(scratch_buffer_.reserve(needed.used()));
  scratch_ = lay_out(layout, world_size());
  scratch_buffer_.tensor_at(scratch_.one, sizeof(double)).view(at::kDouble).fill_(1.0);
}

DeviceCollective::Scratch DeviceCollective::lay_out(MemoryLayout& layout, int world) {
  Scratch scratch = {};
  scratch.factor = layout.take<double>(1);
  scratch.coefficients = layout.take<double>(static_cast<std::size_t>(std::max(world, kMaxObjectives)));
  scratch.packed_gramian = layout.take<double>(packed_size(kMaxObjectives));
  scratch.model = layout.take<double>(packed_size(kMaxObjectives));
  scratch.own_coefficients = layout.take<double>(kMaxObjectives);
  scratch.own_shares = layout.take<double>(kMaxObjectives);
  scratch.one = layout.take<double>(1);
  scratch.none = layout.take<int>(1);
  return scratch;
}

void DeviceCollective::reserve_for(int first_k) {
  // Of the GPU with the least shared memory: the room for objectives decides how much ranks send each other.
  const at::Tensor limits = at::zeros({all_.size()}, at::kInt);
  int* const limit = limits.mutable_data_ptr<int>();
  check_cuda(cuda::solve_limit(method_, limit + all_.rank()), "asking for the solver's limit");
  all_.all_gather_host(limits);
  const int most = *std::min_element(limit, limit + all_.size());
  if (first_k > most) {
    throw AgreedError(c10::str("bucket_moo_ext: a GPU of this group can solve this method for at most ", most,
                               " objectives; got ", first_k));
  }
  step_.bound_objectives(first_k, most);
  std::size_t bytes = 0;
  check_cuda(cuda::gramian_workspace_size(step_.k_bound(), &bytes), "sizing the Gramian's workspace");
  workspace_.reserve(bytes);  // used in turns, also by sketches
}

void DeviceCollective::keep_memory() {
  for (DeviceBuffer* const buffer : {&tile_, &outgoing_, &messages_, &scaled_, &columns_, &workspace_}) {
    buffer->keep_all();
  }
  if (inside_) {
    inside_->keep_memory();
  }
  step_.keep_memory();
}

void DeviceCollective::sum_inside(Operation operation, const at::Tensor& output, const at::Tensor& input, int pass) {
  if (!inside_) {
    return;
  }
  const double* const shares = step_.inside_shares(pass);
  if (operation == Operation::reduce_scatter) {
    inside_->mean_across(input, output.numel(), shares);
  } else if (operation == Operation::reduce_scatter_inside) {
    inside_->mean_to_shard(output, input, shares);
  } else {
    inside_->mean_in_place(output, shares);
  }
}

DeviceBucket DeviceCollective::bucket(Operation operation, const at::Tensor& output, const at::Tensor& input,
                                      std::int64_t index, std::int64_t tile_limit) const {
  if (operation == Operation::reduce_scatter) {
    return apart(output, inside_ ? inside_->summed_across(output) : input, index, tile_limit);
  }
  if (!inside_ || operation == Operation::reduce_scatter_inside) {
    return in_place(output, index, tile_limit);
  }
  DeviceBucket part = in_place(inside_->part(output), index, tile_limit);
  part.whole = output;
  return part;
}

DeviceBucket DeviceCollective::in_place(const at::Tensor& bucket, std::int64_t index, std::int64_t tile_limit) const {
  const DType dtype = dtype_of(bucket.scalar_type(), "a bucket");
  const auto element = static_cast<std::int64_t>(element_size(dtype));
  const ShardLayout layout = shard_layout(bucket.numel(), world_size(), element_size(dtype));
  const std::int64_t shard_bytes = layout.shard * element;
  const at::Tensor bytes = as_bytes(bucket);
  return {.shards = bytes.narrow(0, 0, world_size() * shard_bytes),
          .tail = bytes.narrow(0, world_size() * shard_bytes, layout.tail * element),
          .shard_out = bytes_of(bucket) + rank() * shard_bytes,
          .shard_size = layout.shard,
          .tail_size = layout.tail,
          .dtype = dtype,
          .piece = piece_size(layout.shard, world_size(), element_size(dtype), limit_of_others(tile_limit)),
          .index = index,
          .in_place = true};
}

DeviceBucket DeviceCollective::apart(const at::Tensor& output, const at::Tensor& input, std::int64_t index,
                                     std::int64_t tile_limit) const {
  const DType dtype = dtype_of(output.scalar_type(), "output");
  return {.shards = input.defined() ? as_bytes(input) : at::Tensor(),  // the rows may be put aside already
          .tail = as_bytes(output).narrow(0, 0, 0),
          .shard_out = bytes_of(output),
          .shard_size = output.numel(),
          .tail_size = 0,
          .dtype = dtype,
          .piece = piece_size(output.numel(), world_size(), element_size(dtype), limit_of_others(tile_limit)),
          .index = index,
          .in_place = false};
}

void DeviceCollective::reduce(const Bucket& bucket, const DeviceResult& result, const DeviceSolverState* state) {
  partial_gramian(bucket);
  const cuda::DeviceRows tails = exchange_messages(bucket);
  cuda::SolveStep step;
  step.table = step_.table();
  step.world = world_size();
  step.k_bound = step_.k_bound();
  step.gramian = gramian_parts(bucket, tails);
  launch_solve(step, method_, bucket.index, {.result = result, .state = state}, step_.registry());
  {
    const NvtxRange range("bucket_moo combine");
    combine(bucket, tails);
  }
  all_gather_shards(bucket);
}

void DeviceCollective::all_gather_shards(const Bucket& bucket) {
  if (bucket.in_place) {
    const NvtxRange range("bucket_moo all_gather");
    exchange_.all_gather(bucket.shards);
  }
  if (bucket.whole.defined()) {
    inside_->gather_parts(bucket.whole);
  }
}

/// The tile holds the own block too: how much of `limit` is left for the others'.
std::int64_t DeviceCollective::limit_of_others(std::int64_t limit) const { return limit - limit / world_size(); }

std::size_t DeviceCollective::packed_bytes(int k_bound) {
  return round_up(static_cast<std::size_t>(packed_size(k_bound)) * sizeof(double), kKernelAlignment);
}

cuda::DeviceRows DeviceCollective::load_piece(const Bucket& bucket, std::int64_t begin) {
  const auto element = static_cast<std::int64_t>(element_size(bucket.dtype));
  const std::int64_t size = std::min(bucket.piece, bucket.shard_size - begin);
  cuda::DeviceRows rows;
  rows.count = world_size();
  rows.size = size;
  rows.dtype = bucket.dtype;
  if (world_size() == 1) {
    rows.base = bytes_of(bucket.shards) + begin * element;
    return rows;
  }
  const auto bytes = static_cast<std::size_t>(size * element);
  const auto shard_bytes = static_cast<std::size_t>(bucket.shard_size * element);
  const std::size_t total = static_cast<std::size_t>(world_size()) * bytes;
  at::Tensor input = bucket.shards;
  if (size < bucket.shard_size) {  // the pieces of the shards are apart, and c10d sends what lies side by side
    std::byte* const packed = outgoing_.reserve(total);
    // A copy each: cudaMemcpy2DAsync() takes no pitch of 2 GiB, which the shard of a large model is.
    for (int r = 0; r < world_size(); ++r) {
      const std::byte* const shard = bytes_of(bucket.shards) + static_cast<std::size_t>(r) * shard_bytes;
      check_cuda(cudaMemcpyAsync(packed + static_cast<std::size_t>(r) * bytes, shard + begin * element, bytes,
                                 cudaMemcpyDeviceToDevice, stream()),
                 "enqueueing the copy of a piece");
    }
    input = outgoing_.tensor(total);
  }
  rows.base = tile_.reserve(total);
  rows.pitch = static_cast<std::int64_t>(bytes);
  const NvtxRange range("bucket_moo all_to_all");
  exchange_.all_to_all(tile_.tensor(total), input);
  return rows;
}

void DeviceCollective::gramian(const cuda::DeviceRows& rows, const ObjectiveTable& table, int likely_k, bool fixed_grid,
                               bool add, double* packed) {
  cuda::GramianArguments arguments;
  arguments.rows = rows;
  arguments.table = table;
  arguments.likely_k = likely_k;
  arguments.grid = fixed_grid ? cuda::Grid::fixed : cuda::Grid::device;
  arguments.add = add;
  arguments.packed = packed;
  arguments.workspace = workspace_.data();
  arguments.tickets = step_.gramian_tickets();
  check_cuda(cuda::launch_gramian(arguments, stream()), "enqueueing a Gramian");
}

/// Where in a message the tail begins.
std::size_t DeviceCollective::gramian_bytes(const Bucket& bucket) const {
  return bucket.shard_size > 0 ? packed_bytes(step_.k_bound()) : 0;
}

/// Of what each rank sends to all: the partial Gramian of its shard, and the tail. A bucket that is all tail is its own
/// message, as it lies there.
std::size_t DeviceCollective::message_bytes(const Bucket& bucket) const {
  const std::size_t tail = static_cast<std::size_t>(bucket.tail_size) * element_size(bucket.dtype);
  return bucket.shard_size > 0 ? packed_bytes(step_.k_bound()) + round_up(tail, kKernelAlignment) : tail;
}

/// Into this rank's message.
void DeviceCollective::partial_gramian(const Bucket& bucket) {
  const std::size_t message = message_bytes(bucket);
  std::byte* const messages = messages_.reserve(static_cast<std::size_t>(world_size()) * message);
  auto* const packed = reinterpret_cast<double*>(messages + static_cast<std::size_t>(rank()) * message);
  if (bucket.piece >= bucket.shard_size) {
    outgoing_.release();  // DDP's first iteration is over
  }
  for (std::int64_t begin = 0; begin < bucket.shard_size; begin += bucket.piece) {
    last_piece_ = load_piece(bucket, begin);
    const NvtxRange range("bucket_moo gramian");
    gramian(last_piece_, step_.table(), step_.first_k(), /*fixed_grid=*/false, /*add=*/begin > 0, packed);
  }
}

/// Returns the rows of the tail.
cuda::DeviceRows DeviceCollective::exchange_messages(const Bucket& bucket) {
  const NvtxRange range("bucket_moo exchange");
  const std::size_t message = message_bytes(bucket);
  const std::size_t total = static_cast<std::size_t>(world_size()) * message;
  std::byte* const tails = messages_.data() + gramian_bytes(bucket);
  if (bucket.shard_size == 0) {
    if (bucket.tail_size > 0) {
      exchange_.all_gather(messages_.tensor(total), bucket.tail);
    }
  } else {
    if (bucket.tail_size > 0) {
      check_cuda(cudaMemcpyAsync(tails + static_cast<std::size_t>(rank()) * message, bytes_of(bucket.tail),
                                 bucket.tail.nbytes(), cudaMemcpyDeviceToDevice, stream()),
                 "enqueueing the copy of the tail");
    }
    exchange_.all_gather(messages_.tensor(total));
  }
  cuda::DeviceRows rows;
  rows.base = tails;
  rows.pitch = static_cast<std::int64_t>(message);
  rows.count = world_size();
  rows.size = bucket.tail_size;
  rows.dtype = bucket.dtype;
  return rows;
}

/// What the Gramian of the whole bucket is the sum of.
cuda::GramianParts DeviceCollective::gramian_parts(const Bucket& bucket, const cuda::DeviceRows& tails) {
  cuda::GramianParts parts;
  if (bucket.shard_size > 0) {
    parts.messages = messages_.data();
    parts.pitch = tails.pitch;
    parts.world = world_size();
  }
  if (!inside_ && cuda::solve_takes_tail(step_.k_bound(), tails.size)) {
    parts.tail = {.base = tails.base, .pitch = tails.pitch, .size = static_cast<int>(tails.size), .dtype = tails.dtype};
  } else if (tails.size > 0) {
    const NvtxRange range("bucket_moo gramian");
    gramian(tails, step_.table(), step_.first_k(), /*fixed_grid=*/true, /*add=*/false, scratch_.packed_gramian);
    parts.packed = scratch_.packed_gramian;
  }
  return of_all_parts(parts, step_.table(), step_.k_bound());
}

/// `step`: what the problem is, as far as it is known.
void DeviceCollective::launch_solve(cuda::SolveStep step, const Method& method, std::int64_t index,
                                    const DeviceSolve& solve, const ObjectiveRegistry& registry) {
  const NvtxRange range("bucket_moo solve");
  if (solve.state != nullptr) {
    step.slot = registry.slot;
    step.capacity = registry.capacity;
    step.state = solve.state->data();
  }
  step.method = method;
  step.seed = seed_;
  step.bucket = static_cast<std::uint64_t>(index);
  step.result = solve.result.pointers();
  step.kept = solve.kept == nullptr ? cuda::BucketResult{} : solve.kept->pointers();
  step.counters = solve.counted ? step_.counters() : nullptr;
  step.coefficients = scratch_.coefficients;
  check_cuda(cuda::launch_solve(step, stream()), "enqueueing the solve");
}

void DeviceCollective::combine(const Bucket& bucket, const cuda::DeviceRows& tails) {
  const double* const coefficients = scratch_.coefficients;
  if (bucket.shard_size == 0) {
    check_cuda(cuda::launch_combine(tails, coefficients, bytes_of(bucket.tail), stream()), "enqueueing a combination");
    return;
  }
  const auto element = static_cast<std::int64_t>(element_size(bucket.dtype));
  // Backwards: the last piece is still in the tile, and only its successors need to be exchanged once more.
  const std::int64_t last = (bucket.shard_size - 1) / bucket.piece * bucket.piece;
  for (std::int64_t begin = last; begin >= 0; begin -= bucket.piece) {
    const bool is_last = begin == last;  // which takes the tail with it
    const cuda::DeviceRows rows = is_last ? last_piece_ : load_piece(bucket, begin);
    check_cuda(cuda::launch_combine(rows, bucket.shard_out + begin * element, is_last ? tails : cuda::DeviceRows{},
                                    bytes_of(bucket.tail), coefficients, stream()),
               "enqueueing a combination");
  }
}

void DeviceCollective::accumulate(const Bucket& bucket, int pass, DeviceTile& tile) {
  const NvtxRange range("bucket_moo accumulate");
  const PassTable& rows_of_pass = step_.pass(pass);
  tile.reserve(step_.pass_capacity());
  if (bucket.piece >= bucket.shard_size) {
    outgoing_.release();  // DDP's first iteration is over
  }
  check_cuda(cuda::launch_begin_addition(step_.sums().header, world_size(), rank(), rows_of_pass, tile.begin_addition(),
                                         tile.units(), step_.decay(), step_.share(), stream()),
             "enqueueing an addition");
  cuda::AccumulateArguments arguments;
  arguments.coefficient = rows_of_pass.coefficient;
  arguments.objective = rows_of_pass.objective;
  arguments.decay = step_.decay();
  arguments.k = &step_.sums().header->k;
  const auto add = [&](const cuda::DeviceRows& rows, const cuda::DeviceRows& sums) {
    arguments.rows = rows;
    arguments.count = sums.count;
    std::transform(sums.scattered, sums.scattered + sums.count, arguments.sums,
                   [](const void* sum) { return const_cast<void*>(sum); });
    check_cuda(cuda::launch_accumulate(arguments, stream()), "enqueueing an addition");
  };
  if (bucket.tail_size > 0) {
    add(gather_tails(bucket), tile.tail());
  }
  if (bucket.shard_size == 0) {
    return;
  }
  if (step_.rules().one_objective && world_size() > 1) {
    cuda::DeviceRows sum;
    sum.base = bytes_of(mean_of_ranks(bucket, &step_.share()->of_rank));
    sum.count = 1;
    sum.size = bucket.shard_size;
    sum.dtype = bucket.dtype;
    arguments.coefficient = &step_.share()->weight;
    add(sum, tile.shard(0, bucket.shard_size));
    return;
  }
  for (std::int64_t begin = 0; begin < bucket.shard_size; begin += bucket.piece) {
    const cuda::DeviceRows rows = load_piece(bucket, begin);
    add(rows, tile.shard(begin, rows.size));
  }
}

/// The rows of the tail, one of every rank.
cuda::DeviceRows DeviceCollective::gather_tails(const Bucket& bucket) {
  const auto bytes = static_cast<std::size_t>(bucket.tail.nbytes());
  cuda::DeviceRows rows;
  rows.base = messages_.reserve(static_cast<std::size_t>(world_size()) * bytes);
  rows.pitch = static_cast<std::int64_t>(bytes);
  rows.count = world_size();
  rows.size = bucket.tail_size;
  rows.dtype = bucket.dtype;
  exchange_.all_gather(messages_.tensor(static_cast<std::size_t>(world_size()) * bytes), bucket.tail);
  return rows;
}

/// This rank's shard of the mean of the ranks' buckets, `share` being what its own counts for. Scales the shards, or a
/// copy of them where they are only to be read.
at::Tensor DeviceCollective::mean_of_ranks(const Bucket& bucket, const double* share) {
  const at::ScalarType type = scalar_type_of(bucket.dtype);
  at::Tensor scaled = bucket.shards;
  cuda::ScaleArguments arguments;
  if (!bucket.in_place) {
    scaled_.reserve(bucket.shards.nbytes());
    scaled = scaled_.tensor(bucket.shards.nbytes());
    arguments.from = bucket.shards.const_data_ptr();
  }
  arguments.values = scaled.mutable_data_ptr();
  arguments.size = bucket.shard_size * world_size();
  arguments.dtype = bucket.dtype;
  arguments.coefficient = share;
  arguments.share = share;
  check_cuda(cuda::launch_scale(arguments, stream()), "enqueueing the scaling of a bucket");
  const std::size_t bytes = bucket.shards.nbytes() / static_cast<std::size_t>(world_size());
  tile_.reserve(bytes);
  const at::Tensor sum = tile_.tensor(bytes);
  exchange_.reduce_scatter(sum.view(type), scaled.view(type));
  return sum;
}

/// The problem of a bucket's sums, without its Gramian.
cuda::SolveStep DeviceCollective::begin_sums(const DeviceTile& tile) {
  const int capacity = tile.objectives();
  std::size_t bytes = 0;
  check_cuda(cuda::gramian_workspace_size(capacity, &bytes), "sizing the Gramian's workspace");
  workspace_.reserve(bytes);
  check_cuda(cuda::launch_make_sums_table(step_.sums(), tile.units(), capacity, step_.sums_table(),
                                          step_.registry_of_sums(), step_.failure_report(), stream()),
             "enqueueing the table of a bucket's sums");
  return problem_of_sums(tile);
}

cuda::SolveStep DeviceCollective::problem_of_sums(const DeviceTile& tile) const {
  cuda::SolveStep step;
  step.table = step_.sums_table();
  step.world = tile.objectives();
  step.k_bound = tile.objectives();
  return step;
}

/// After begin_sums().
cuda::GramianParts DeviceCollective::gramian_of_sums(const Bucket& bucket, const DeviceTile& tile) {
  cuda::GramianParts parts;
  if (bucket.shard_size > 0) {
    const std::size_t message = packed_bytes(step_.pass_limit());  // not the tile's objectives: see there
    const std::size_t total = static_cast<std::size_t>(world_size()) * message;
    std::byte* const messages = messages_.reserve(total);
    auto* const own = reinterpret_cast<double*>(messages + static_cast<std::size_t>(rank()) * message);
    gramian(tile.shard(0, bucket.shard_size), step_.sums_table(), /*likely_k=*/0, /*fixed_grid=*/false, /*add=*/false,
            own);
    const NvtxRange range("bucket_moo exchange");
    exchange_.all_gather(messages_.tensor(total));
    parts.messages = messages;
    parts.pitch = static_cast<std::int64_t>(message);
    parts.world = world_size();
  }
  if (bucket.tail_size > 0) {
    gramian(tile.tail(), step_.sums_table(), /*likely_k=*/0, /*fixed_grid=*/true, /*add=*/false,
            scratch_.packed_gramian);
    parts.packed = scratch_.packed_gramian;
  }
  return of_all_parts(parts, step_.sums_table(), step_.pass_limit());
}

/// The Gramian of what is reduced here becomes that of the whole bucket. `k_bound`: the same on all ranks.
cuda::GramianParts DeviceCollective::of_all_parts(const cuda::GramianParts& parts, const ObjectiveTable& table,
                                                  int k_bound) {
  return inside_ ? inside_->sum_over_parts(parts, table.header, k_bound, packed_bytes(k_bound)) : parts;
}

void DeviceCollective::reduce_tile(const Bucket& bucket, const DeviceTile& tile, const DeviceResult& result,
                                   const DeviceSolverState* state) {
  solve_tile(bucket, tile, method_, {.result = result, .state = state});
  combine_tile(bucket, tile);
}

void DeviceCollective::solve_tile(const Bucket& bucket, const DeviceTile& tile, const Method& method,
                                  const DeviceSolve& solve) {
  cuda::SolveStep step = begin_sums(tile);
  step.gramian = gramian_of_sums(bucket, tile);
  launch_solve(step, method, bucket.index, solve, step_.registry_of_sums());
}

/// The bucket's own weights are of no use: its solve, the cheapest there is, adds up its Gramian and looks for a NaN.
void DeviceCollective::add_to_model(const Bucket& bucket, const DeviceTile& tile, const DeviceSolve& of_bucket) {
  solve_tile(bucket, tile, {.id = MethodId::mean}, of_bucket);
  const cuda::BucketResult result = of_bucket.result.pointers();
  const bool add = !std::exchange(model_is_empty_, false);
  check_cuda(cuda::launch_add_gramian(result.header, result.gramian, add, scratch_.model, stream()),
             "enqueueing the addition of a Gramian");
}

/// Any tile of the step will do for the problem. Its coefficients are for sums in the same units: those of buckets that
/// were in every pass as this one was.
void DeviceCollective::solve_model(const DeviceTile& tile, std::int64_t index, const DeviceSolve& solve) {
  cuda::SolveStep step = begin_sums(tile);
  step.gramian.packed = scratch_.model;
  launch_solve(step, method_, index, solve, step_.registry_of_sums());
}

/// `shares`: nullptr where the weights were solved for with these sums, see cuda::launch_combine().
void DeviceCollective::combine_tile(const Bucket& bucket, const DeviceTile& tile, const double* coefficients,
                                    const double* shares) {
  {
    const NvtxRange range("bucket_moo combine");
    const auto combine_sums = [&](const cuda::DeviceRows& sums, std::byte* out) {
      check_cuda(cuda::launch_combine(sums, out, {}, nullptr, bucket.dtype, coefficients, stream(), shares),
                 "enqueueing a combination");
    };
    combine_sums(tile.shard(0, bucket.shard_size), bucket.shard_out);
    combine_sums(tile.tail(), bytes_of(bucket.tail));
  }
  all_gather_shards(bucket);
}

at::Tensor DeviceSketches::tensor() const {
  return memory.tensor(static_cast<std::size_t>(rows.count * rows.pitch))
      .view(rows.dtype == DType::float64 ? at::kDouble : at::kFloat);
}

void DeviceCollective::start_sketch(const at::Tensor& bucket, std::int64_t index, std::int64_t width,
                                    DeviceSketches& sketches) {
  const NvtxRange range("bucket_moo sketch");
  cuda::SketchArguments arguments;
  arguments.row = bucket.const_data_ptr();
  arguments.size = bucket.numel();
  arguments.dtype = dtype_of(bucket.scalar_type(), "a bucket");
  arguments.width = width;
  arguments.seed = sketch_.seed;
  arguments.bucket = static_cast<std::uint64_t>(index);
  arguments.table = step_.table();
  arguments.rank = rank();
  arguments.rows = step_.k_bound();
  cuda::DeviceRows& rows = sketches.rows;
  rows.dtype = sketch_dtype(arguments.dtype);
  rows.pitch = width * static_cast<std::int64_t>(element_size(rows.dtype));
  rows.count = step_.k_bound();
  rows.size = width;
  arguments.out = sketches.memory.reserve(static_cast<std::size_t>(rows.count * rows.pitch));
  rows.base = arguments.out;
  std::size_t bytes = 0;
  check_cuda(cuda::sketch_workspace_size(arguments.size, arguments.dtype, width, &bytes),
             "sizing the sketch's workspace");
  arguments.workspace = workspace_.reserve(bytes);
  check_cuda(cuda::launch_sketch(arguments, stream()), "enqueueing a sketch");
}

void DeviceCollective::solve_sketched(const DeviceSketches& sketches, std::int64_t index, const DeviceSolve& solve) {
  {
    const NvtxRange range("bucket_moo exchange");
    exchange_.all_reduce(sketches.tensor());
  }
  // The table's K is not known here: the Gramian has the rows of zeros beyond it too, and they come last in it.
  cuda::GramianArguments arguments;
  arguments.rows = sketches.rows;
  arguments.grid = cuda::Grid::fixed;
  arguments.packed = scratch_.packed_gramian;
  arguments.workspace = workspace_.data();
  arguments.tickets = step_.gramian_tickets();
  check_cuda(cuda::launch_gramian(arguments, stream()), "enqueueing the Gramian of sketches");
  cuda::SolveStep step;
  step.table = step_.table();
  step.world = world_size();
  step.k_bound = step_.k_bound();
  step.gramian.packed = scratch_.packed_gramian;
  launch_solve(step, method_, index, solve, step_.registry());
}

/// A bucket times this rank's coefficient; where it goes is still to be said.
cuda::ScaleArguments DeviceCollective::scaling(const at::Tensor& bucket, const KeptWeights* kept) const {
  cuda::ScaleArguments arguments;
  arguments.size = bucket.numel();
  arguments.dtype = dtype_of(bucket.scalar_type(), "a bucket");
  arguments.coefficient = scratch_.coefficients + rank();
  arguments.share = step_.table().share + rank();
  if (kept != nullptr) {
    arguments.kept = {.table = step_.table(),
                      .rank = rank(),
                      .kept = kept->kept.pointers(),
                      .used = kept->used.pointers(),
                      .counters = step_.counters()};
  }
  return arguments;
}

void DeviceCollective::weighted_all_reduce(const at::Tensor& bucket, const KeptWeights* kept) {
  all_reduce_scaled(bucket, scaling(bucket, kept));
}

/// In place.
void DeviceCollective::all_reduce_scaled(const at::Tensor& bucket, cuda::ScaleArguments arguments) {
  const NvtxRange range("bucket_moo all_reduce");
  arguments.values = bucket.mutable_data_ptr();
  if (exchange_.multiplies(bucket.scalar_type())) {
    check_cuda(cuda::launch_prepare_premultiplied(arguments, scratch_.factor, stream()), "enqueueing a factor");
    const auto bytes = static_cast<std::size_t>(bucket.element_size());
    const at::Tensor factor = scratch_buffer_.tensor_at(scratch_.factor, bytes);
    exchange_.all_reduce(bucket, factor.view(bucket.scalar_type()));
  } else {
    check_cuda(cuda::launch_scale(arguments, stream()), "enqueueing the scaling of a bucket");
    exchange_.all_reduce(bucket);
  }
}

void DeviceCollective::weighted_reduce_scatter(const at::Tensor& output, const at::Tensor& input,
                                               const KeptWeights* kept) {
  reduce_scatter_scaled(output, input, scaling(input, kept));
}

/// Of a copy of the input.
void DeviceCollective::reduce_scatter_scaled(const at::Tensor& output, const at::Tensor& input,
                                             cuda::ScaleArguments arguments) {
  const NvtxRange range("bucket_moo reduce_scatter");
  scaled_.reserve(input.nbytes());
  const at::Tensor scaled = scaled_.tensor(input.nbytes()).view(input.scalar_type());
  arguments.values = scaled.mutable_data_ptr();
  arguments.from = input.const_data_ptr();
  check_cuda(cuda::launch_scale(arguments, stream()), "enqueueing the scaling of a bucket");
  exchange_.reduce_scatter(output.as_strided({output.numel()}, {1}), scaled);
}

std::size_t DeviceCollective::scratch_bytes() const {
  return step_.bytes() + scratch_buffer_.capacity() + tile_.capacity() + outgoing_.capacity() + messages_.capacity() +
         scaled_.capacity() + columns_.capacity() + workspace_.capacity() + from_pieces_.capacity() +
         (inside_ ? inside_->scratch_bytes() : 0);
}

}  // namespace bucket_moo
