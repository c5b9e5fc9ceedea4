#include "collective/device_collective.hpp"

#include <ATen/Functions.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "bucket_moo/limits.hpp"
#include "bucket_moo/state_layout.hpp"
#include "collective/dtype.hpp"
#include "collective/shard_layout.hpp"
#include "combine.cuh"
#include "gramian.cuh"
#include "kept_weights.cuh"
#include "kernels/sketch.hpp"
#include "range.cuh"
#include "sketch.cuh"
#include "solve.cuh"
#include "step.cuh"

namespace bucket_moo {
namespace {

using cuda::Range;

/// Up to this many objectives in the first step, room for kRoom is enough.
constexpr int kFew = 8;
constexpr int kRoom = 16;

/// With sketches there is room for as many at least.
constexpr int kLeastSketches = 4;

constexpr std::size_t kAlignment = 16;  // of kernels' loads

std::size_t round_up(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

/// Not view(): a contiguous tensor of one element may have any stride.
at::Tensor as_bytes(const at::Tensor& tensor) { return tensor.as_strided({tensor.numel()}, {1}).view(at::kByte); }

std::byte* bytes_of(const at::Tensor& tensor) { return static_cast<std::byte*>(tensor.mutable_data_ptr()); }

/// Hands out parts of a block of memory, front to back; without memory it counts how much is needed.
class Parts {
 public:
  explicit Parts(std::byte* memory) : memory_(memory) {}

  template <class T>
  T* take(std::size_t count) {
    T* const part = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += round_up(count * sizeof(T), kAlignment);
    return part;
  }

  std::size_t used() const { return used_; }

 private:
  std::byte* memory_;
  std::size_t used_ = 0;
};

ObjectiveRegistry registry_in(std::byte* memory, int world, std::size_t* bytes = nullptr) {
  Parts parts(memory);
  ObjectiveRegistry registry{};
  registry.names = parts.take<ObjectiveName>(kMaxRememberedNames);
  registry.count = parts.take<int>(1);
  registry.slot = parts.take<int>(static_cast<std::size_t>(world));
  registry.capacity = kMaxRememberedNames;
  if (bytes != nullptr) {
    *bytes = parts.used();
  }
  return registry;
}

/// Host memory of what the device holds, once the current stream has come so far.
template <class T>
std::vector<T> read(const T* device_memory, std::size_t count, cudaStream_t stream) {
  std::vector<T> host(count);
  check_cuda(cudaMemcpyAsync(host.data(), device_memory, count * sizeof(T), cudaMemcpyDeviceToHost, stream),
             "reading device memory");
  check_cuda(cudaStreamSynchronize(stream), "waiting for the device");
  return host;
}

template <class T>
void write(T* device_memory, const T* host, std::size_t count, cudaStream_t stream) {
  check_cuda(cudaMemcpyAsync(device_memory, host, count * sizeof(T), cudaMemcpyHostToDevice, stream),
             "writing device memory");
  check_cuda(cudaStreamSynchronize(stream), "waiting for the device");
}

}  // namespace

struct DeviceCollective::StepMemory {
  StepMemory(std::byte* memory, int world) {
    Parts parts(memory);
    const auto count = static_cast<std::size_t>(world);
    records = parts.take<StepRecord>(count);
    table.header = parts.take<StepHeader>(1);
    table.leader = parts.take<int>(count);
    table.objective = parts.take<int>(count);
    table.share = parts.take<double>(count);
    table.begin = parts.take<int>(count + 1);
    table.member = parts.take<int>(count);
    counters = parts.take<cuda::DeviceCounters>(1);
    failed = parts.take<StepHeader>(1);
    first.names = parts.take<ObjectiveName>(kMaxObjectives);
    first.count = parts.take<int>(1);
    factor = parts.take<double>(1);
    coefficients = parts.take<double>(count);
    tail_partial = parts.take<double>(kMaxObjectives * (kMaxObjectives + 1) / 2);
    bytes = parts.used();
  }

  StepRecord* records = nullptr;  // [W], side by side: they are gathered in place
  ObjectiveTable table{};
  cuda::DeviceCounters* counters = nullptr;
  StepHeader* failed = nullptr;
  FirstObjectives first{};
  double* factor = nullptr;        // of this rank in a sum, of any dtype
  double* coefficients = nullptr;  // [W] of the combination
  double* tail_partial = nullptr;  // packed Gramian of the tails, or of sketches
  std::size_t bytes = 0;
};

DeviceCollective::DeviceCollective(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device,
                                   const Method& method, int option_count, std::uint64_t seed,
                                   const SketchOptions& sketch)
    : exchange_(std::move(group), device),
      device_(device),
      method_(method),
      option_count_(option_count),
      seed_(seed),
      sketch_(sketch),
      step_memory_(device),
      names_(device),
      tile_(device),
      outgoing_(device),
      messages_(device),
      scaled_(device),
      workspace_(device) {
  step_memory_.reserve(StepMemory(nullptr, world_size()).bytes);
  if (state_size(method_, 1) > 0) {
    std::size_t bytes = 0;
    registry_in(nullptr, world_size(), &bytes);
    names_.reserve(bytes);
  }
  first_failure_ = at::zeros({static_cast<std::int64_t>(sizeof(StepHeader))},
                             at::TensorOptions().dtype(at::kByte).pinned_memory(device.is_cuda()));
}

DeviceCollective::StepMemory DeviceCollective::step_memory() const { return {step_memory_.data(), world_size()}; }

Objectives DeviceCollective::meet(const StepRecord& own) const {
  std::vector<StepRecord> records(static_cast<std::size_t>(world_size()));
  records[static_cast<std::size_t>(rank())] = own;
  exchange_.all_gather_host(reinterpret_cast<std::byte*>(records.data()), sizeof(StepRecord));
  return read_objectives(records);
}

void DeviceCollective::settle(int first_k) {
  likely_k_ = first_k;
  const int room = likely_k_ <= kFew ? kRoom : kMaxObjectives;
  const int sketches = std::max(kLeastSketches, static_cast<int>(std::bit_ceil(static_cast<unsigned>(likely_k_))));
  k_bound_ = std::min(sketch_.enabled() ? sketches : room, world_size());
  std::size_t gramian_bytes = 0;
  std::size_t solve_bytes = 0;
  check_cuda(cuda::gramian_workspace_size(k_bound_, &gramian_bytes), "sizing the Gramian's workspace");
  check_cuda(cuda::solve_workspace_size(method_, 1, k_bound_, &solve_bytes), "sizing the solver's workspace");
  workspace_.reserve(std::max(gramian_bytes, solve_bytes));  // used in turns, also by sketches
}

void DeviceCollective::keep_memory() {
  for (DeviceBuffer* const buffer : {&tile_, &outgoing_, &messages_, &scaled_, &workspace_}) {
    buffer->keep_all();
  }
}

void DeviceCollective::set_step(std::int64_t step) { write(&step_memory().counters->step, &step, 1, stream()); }

void DeviceCollective::begin_step(const StepRecord& own) {
  const Range range("bucket_moo step");
  const StepMemory memory = step_memory();
  const auto world = static_cast<std::size_t>(world_size());
  check_cuda(cuda::launch_write_record(own, &memory.counters->step, memory.records + rank(), stream()),
             "enqueueing the step's record");
  exchange_.all_gather(step_memory_.tensor(world * sizeof(StepRecord)));
  const ObjectiveRegistry registry =
      names_.capacity() == 0 ? ObjectiveRegistry{} : registry_in(names_.data(), world_size());
  check_cuda(cuda::launch_make_table(memory.records, world_size(), {.objectives = k_bound_, .expected = option_count_},
                                     memory.table, sketch_.keeps_weights() ? memory.first : FirstObjectives{}, registry,
                                     memory.failed, stream()),
             "enqueueing the step's table");
  // By torch, which keeps the pinned memory from others until the copy is done.
  const auto failed = reinterpret_cast<std::byte*>(memory.failed) - step_memory_.data();
  first_failure_.copy_(step_memory_.tensor(step_memory_.capacity()).narrow(0, failed, sizeof(StepHeader)),
                       /*non_blocking=*/true);
}

void DeviceCollective::check_past_steps() const {
  check_step_of(*static_cast<const StepHeader*>(first_failure_.const_data_ptr()));
}

void DeviceCollective::check_step_of(const StepHeader& header) const { check_step(header, {}, k_bound_); }

void DeviceCollective::all_reduce(const at::Tensor& bucket, std::int64_t index, std::int64_t tile_limit,
                                  const DeviceResult& result, const DeviceSolverState* state) {
  const DType dtype = dtype_of(bucket.scalar_type(), "a bucket");
  const auto element = static_cast<std::int64_t>(element_size(dtype));
  const ShardLayout layout = shard_layout(bucket.numel(), world_size(), element_size(dtype));
  const std::int64_t shard_bytes = layout.shard * element;
  const at::Tensor shards = as_bytes(bucket).narrow(0, 0, world_size() * shard_bytes);
  reduce({.shards = shards,
          .tail = bytes_of(bucket) + world_size() * shard_bytes,
          .shard_out = bytes_of(bucket) + rank() * shard_bytes,
          .shard_size = layout.shard,
          .tail_size = layout.tail,
          .dtype = dtype,
          .piece = piece_size(layout.shard, world_size(), element_size(dtype), of_others(tile_limit)),
          .index = index},
         result, state);
  const Range range("bucket_moo all_gather");
  exchange_.all_gather(shards);
}

void DeviceCollective::reduce_scatter(const at::Tensor& output, const at::Tensor& input, std::int64_t index,
                                      std::int64_t tile_limit, const DeviceResult& result,
                                      const DeviceSolverState* state) {
  const DType dtype = dtype_of(output.scalar_type(), "output");
  reduce({.shards = as_bytes(input),
          .tail = nullptr,
          .shard_out = bytes_of(output),
          .shard_size = output.numel(),
          .tail_size = 0,
          .dtype = dtype,
          .piece = piece_size(output.numel(), world_size(), element_size(dtype), of_others(tile_limit)),
          .index = index},
         result, state);
}

void DeviceCollective::reduce(const Bucket& bucket, const DeviceResult& result, const DeviceSolverState* state) {
  partial_gramian(bucket);
  const cuda::DeviceRows tails = exchange_partials(bucket, result);
  solve(bucket.index, result, state, /*counted=*/true);
  const Range range("bucket_moo combine");
  combine_shard(bucket);
  if (bucket.tail_size > 0) {
    check_cuda(cuda::launch_combine(tails, step_memory().coefficients, bucket.tail, stream()),
               "enqueueing the combination of the tail");
  }
}

/// The tile holds the own block too: how much of `limit` is left for the others'.
std::int64_t DeviceCollective::of_others(std::int64_t limit) const { return limit - limit / world_size(); }

std::size_t DeviceCollective::packed_bytes() const {
  const auto k = static_cast<std::size_t>(k_bound_);
  return round_up(k * (k + 1) / 2 * sizeof(double), kAlignment);
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
    check_cuda(cudaMemcpy2DAsync(packed, bytes, bytes_of(bucket.shards) + begin * element, shard_bytes, bytes,
                                 static_cast<std::size_t>(world_size()), cudaMemcpyDeviceToDevice, stream()),
               "enqueueing the copy of a piece");
    input = outgoing_.tensor(total);
  }
  rows.base = tile_.reserve(total);
  rows.pitch = static_cast<std::int64_t>(bytes);
  const Range range("bucket_moo all_to_all");
  exchange_.all_to_all(tile_.tensor(total), input);
  return rows;
}

void DeviceCollective::gramian(const cuda::DeviceRows& rows, bool fixed_grid, bool add, double* packed) {
  cuda::GramianArguments arguments;
  arguments.rows = rows;
  arguments.table = step_memory().table;
  arguments.likely_k = likely_k_;
  arguments.grid = fixed_grid ? cuda::Grid::fixed : cuda::Grid::device;
  arguments.add = add;
  arguments.packed = packed;
  arguments.workspace = workspace_.data();
  check_cuda(cuda::launch_gramian(arguments, stream()), "enqueueing a Gramian");
}

/// Into this rank's message.
void DeviceCollective::partial_gramian(const Bucket& bucket) {
  const std::size_t message =
      packed_bytes() + round_up(static_cast<std::size_t>(bucket.tail_size) * element_size(bucket.dtype), kAlignment);
  std::byte* const messages = messages_.reserve(static_cast<std::size_t>(world_size()) * message);
  auto* const packed = reinterpret_cast<double*>(messages + static_cast<std::size_t>(rank()) * message);
  if (bucket.shard_size == 0) {
    check_cuda(cudaMemsetAsync(packed, 0, packed_bytes(), stream()), "enqueueing an empty Gramian");
  }
  if (bucket.piece >= bucket.shard_size) {
    outgoing_.release();  // DDP's first iteration is over
  }
  for (std::int64_t begin = 0; begin < bucket.shard_size; begin += bucket.piece) {
    last_piece_ = load_piece(bucket, begin);
    const Range range("bucket_moo gramian");
    gramian(last_piece_, /*fixed_grid=*/false, /*add=*/begin > 0, packed);
  }
}

/// The Gramian of the whole bucket goes to `result`; returns the rows of the tail.
cuda::DeviceRows DeviceCollective::exchange_partials(const Bucket& bucket, const DeviceResult& result) {
  const Range range("bucket_moo exchange");
  const std::size_t tail_bytes = static_cast<std::size_t>(bucket.tail_size) * element_size(bucket.dtype);
  const std::size_t message = packed_bytes() + round_up(tail_bytes, kAlignment);
  std::byte* const messages = messages_.data();
  if (tail_bytes > 0) {
    check_cuda(cudaMemcpyAsync(messages + static_cast<std::size_t>(rank()) * message + packed_bytes(), bucket.tail,
                               tail_bytes, cudaMemcpyDeviceToDevice, stream()),
               "enqueueing the copy of the tail");
  }
  exchange_.all_gather(messages_.tensor(static_cast<std::size_t>(world_size()) * message));

  cuda::DeviceRows tails;
  tails.base = messages + packed_bytes();
  tails.pitch = static_cast<std::int64_t>(message);
  tails.count = world_size();
  tails.size = bucket.tail_size;
  tails.dtype = bucket.dtype;
  const StepMemory memory = step_memory();
  if (bucket.tail_size > 0) {
    gramian(tails, /*fixed_grid=*/true, /*add=*/false, memory.tail_partial);
  }
  check_cuda(cuda::launch_sum_partials({.messages = messages,
                                        .pitch = static_cast<std::int64_t>(message),
                                        .world = world_size(),
                                        .tail = bucket.tail_size > 0 ? memory.tail_partial : nullptr},
                                       memory.table.header, result.pointers().gramian, stream()),
             "enqueueing the sum of partial Gramians");
  return tails;
}

void DeviceCollective::solve(std::int64_t index, const DeviceResult& result, const DeviceSolverState* state,
                             bool counted) {
  const Range range("bucket_moo solve");
  const StepMemory memory = step_memory();
  cuda::SolveStep step;
  step.method = method_;
  step.seed = seed_;
  step.bucket = static_cast<std::uint64_t>(index);
  step.table = memory.table;
  step.world = world_size();
  step.k_bound = k_bound_;
  step.result = result.pointers();
  step.coefficients = memory.coefficients;
  step.counters = counted ? memory.counters : nullptr;
  if (state != nullptr) {
    const ObjectiveRegistry registry = registry_in(names_.data(), world_size());
    step.slot = registry.slot;
    step.capacity = registry.capacity;
    step.state = state->data();
  }
  std::size_t bytes = 0;
  check_cuda(cuda::solve_workspace_size(method_, 1, k_bound_, &bytes), "sizing the solver's workspace");
  step.workspace = bytes == 0 ? nullptr : reinterpret_cast<double*>(workspace_.data());
  check_cuda(cuda::launch_solve(step, stream()), "enqueueing the solve");
}

void DeviceCollective::combine_shard(const Bucket& bucket) {
  if (bucket.shard_size == 0) {
    return;
  }
  const auto element = static_cast<std::int64_t>(element_size(bucket.dtype));
  const double* const coefficients = step_memory().coefficients;
  // Backwards: the last piece is still in the tile, and only its successors need to be exchanged once more.
  const std::int64_t last = (bucket.shard_size - 1) / bucket.piece * bucket.piece;
  for (std::int64_t begin = last; begin >= 0; begin -= bucket.piece) {
    const cuda::DeviceRows rows = begin == last ? last_piece_ : load_piece(bucket, begin);
    check_cuda(cuda::launch_combine(rows, coefficients, bucket.shard_out + begin * element, stream()),
               "enqueueing a combination");
  }
}

at::Tensor DeviceSketches::tensor() const {
  return memory.tensor(static_cast<std::size_t>(rows.count * rows.pitch))
      .view(rows.dtype == DType::float64 ? at::kDouble : at::kFloat);
}

void DeviceCollective::start_sketch(const at::Tensor& bucket, std::int64_t index, std::int64_t width,
                                    DeviceSketches& sketches) {
  const Range range("bucket_moo sketch");
  cuda::SketchArguments arguments;
  arguments.row = bucket.const_data_ptr();
  arguments.size = bucket.numel();
  arguments.dtype = dtype_of(bucket.scalar_type(), "a bucket");
  arguments.width = width;
  arguments.seed = sketch_.seed;
  arguments.bucket = static_cast<std::uint64_t>(index);
  arguments.table = step_memory().table;
  arguments.rank = rank();
  arguments.rows = k_bound_;
  cuda::DeviceRows& rows = sketches.rows;
  rows.dtype = sketch_dtype(arguments.dtype);
  rows.pitch = width * static_cast<std::int64_t>(element_size(rows.dtype));
  rows.count = k_bound_;
  rows.size = width;
  arguments.out = sketches.memory.reserve(static_cast<std::size_t>(rows.count * rows.pitch));
  rows.base = arguments.out;
  std::size_t bytes = 0;
  check_cuda(cuda::sketch_workspace_size(arguments.size, arguments.dtype, width, &bytes),
             "sizing the sketch's workspace");
  arguments.workspace = workspace_.reserve(bytes);
  check_cuda(cuda::launch_sketch(arguments, stream()), "enqueueing a sketch");
}

void DeviceCollective::solve_sketched(const DeviceSketches& sketches, std::int64_t index, const DeviceResult& result,
                                      const DeviceSolverState* state, bool counted) {
  const StepMemory memory = step_memory();
  {
    const Range range("bucket_moo exchange");
    exchange_.all_reduce(sketches.tensor());
  }
  // The table's K is not known here: the Gramian has the rows of zeros beyond it too, and they come last in it.
  cuda::GramianArguments arguments;
  arguments.rows = sketches.rows;
  arguments.grid = cuda::Grid::fixed;
  arguments.packed = memory.tail_partial;
  arguments.workspace = workspace_.data();
  check_cuda(cuda::launch_gramian(arguments, stream()), "enqueueing the Gramian of sketches");
  check_cuda(cuda::launch_sum_partials({.messages = reinterpret_cast<const std::byte*>(memory.tail_partial),
                                        .pitch = 0,
                                        .world = 1,
                                        .tail = nullptr},
                                       memory.table.header, result.pointers().gramian, stream()),
             "enqueueing the Gramian's unpacking");
  solve(index, result, state, counted);
}

void DeviceCollective::keep(const DeviceResult& solved, const DeviceResult& kept) const {
  check_cuda(cuda::launch_keep(solved.pointers(), kept.pointers(), stream()), "enqueueing the keeping of weights");
}

void DeviceCollective::use_kept(const DeviceResult& kept, const DeviceResult& used) const {
  const StepMemory memory = step_memory();
  check_cuda(cuda::launch_use_kept({.table = memory.table,
                                    .world = world_size(),
                                    .kept = kept.pointers(),
                                    .used = used.pointers(),
                                    .coefficients = memory.coefficients,
                                    .counters = memory.counters},
                                   stream()),
             "enqueueing the use of kept weights");
}

void DeviceCollective::forget_objectives() {
  const int none = 0;
  write(step_memory().first.count, &none, 1, stream());
}

/// A bucket times this rank's coefficient, in place.
cuda::ScaleArguments DeviceCollective::scaling(const at::Tensor& bucket) const {
  const StepMemory memory = step_memory();
  return {.values = bucket.mutable_data_ptr(),
          .size = bucket.numel(),
          .dtype = dtype_of(bucket.scalar_type(), "a bucket"),
          .coefficient = memory.coefficients + rank(),
          .share = memory.table.share + rank()};
}

void DeviceCollective::weighted_all_reduce(const at::Tensor& bucket) {
  const Range range("bucket_moo all_reduce");
  const cuda::ScaleArguments arguments = scaling(bucket);
  if (exchange_.multiplies(bucket.scalar_type())) {
    double* const place = step_memory().factor;
    check_cuda(cuda::launch_prepare_premultiplied(arguments, place, stream()), "enqueueing a factor");
    const auto at = reinterpret_cast<std::byte*>(place) - step_memory_.data();
    const auto bytes = static_cast<std::int64_t>(bucket.element_size());
    const at::Tensor factor = step_memory_.tensor(step_memory_.capacity()).narrow(0, at, bytes);
    exchange_.all_reduce(bucket, factor.view(bucket.scalar_type()));
  } else {
    check_cuda(cuda::launch_scale(arguments, stream()), "enqueueing the scaling of a bucket");
    exchange_.all_reduce(bucket);
  }
}

void DeviceCollective::weighted_reduce_scatter(const at::Tensor& output, const at::Tensor& input) {
  const Range range("bucket_moo reduce_scatter");
  scaled_.reserve(input.nbytes());
  const at::Tensor scaled = scaled_.tensor(input.nbytes()).view(input.scalar_type());
  cuda::ScaleArguments arguments = scaling(scaled);
  arguments.from = input.const_data_ptr();
  check_cuda(cuda::launch_scale(arguments, stream()), "enqueueing the scaling of a bucket");
  exchange_.reduce_scatter(output.as_strided({output.numel()}, {1}), scaled);
}

cuda::DeviceCounters DeviceCollective::counters() const { return read(step_memory().counters, 1, stream())[0]; }

std::vector<std::string> DeviceCollective::objective_names(int k) const {
  const StepMemory memory = step_memory();
  const std::vector<StepRecord> records = read(memory.records, static_cast<std::size_t>(world_size()), stream());
  std::vector<std::string> names;
  for (const int leader : read(memory.table.leader, static_cast<std::size_t>(k), stream())) {
    names.emplace_back(records[static_cast<std::size_t>(leader)].objective.text());
  }
  return names;
}

std::vector<std::string> DeviceCollective::remembered_names() const {
  const ObjectiveRegistry registry = registry_in(names_.data(), world_size());
  const int count = read(registry.count, 1, stream())[0];
  std::vector<std::string> names;
  for (const ObjectiveName& name : read(registry.names, static_cast<std::size_t>(count), stream())) {
    names.emplace_back(name.text());
  }
  return names;
}

void DeviceCollective::set_remembered_names(const std::vector<std::string>& names) {
  TORCH_CHECK_VALUE(names.size() <= static_cast<std::size_t>(kMaxRememberedNames), "bucket_moo_ext: on a GPU at most ",
                    kMaxRememberedNames, " objective names can be remembered; got ", names.size());
  const ObjectiveRegistry registry = registry_in(names_.data(), world_size());
  std::vector<ObjectiveName> padded;
  for (const std::string& name : names) {
    padded.push_back(make_objective_name(name));
  }
  const auto count = static_cast<int>(names.size());
  write(registry.names, padded.data(), padded.size(), stream());
  write(registry.count, &count, 1, stream());
}

std::size_t DeviceCollective::scratch_bytes() const {
  return step_memory_.capacity() + names_.capacity() + tile_.capacity() + outgoing_.capacity() + messages_.capacity() +
         scaled_.capacity() + workspace_.capacity();
}

}  // namespace bucket_moo
