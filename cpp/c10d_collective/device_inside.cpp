#include "c10d_collective/device_inside.hpp"

#include <utility>

#include "collective/shard_layout.hpp"
#include "combine.cuh"
#include "groups.cuh"
#include "nvtx_range.cuh"
#include "scale.cuh"
#include "torch_types/dtype.hpp"

namespace bucket_moo {
namespace {

using cuda::NvtxRange;

/// Not view(): a contiguous tensor of one element may have any stride.
at::Tensor flat(const at::Tensor& tensor) { return tensor.as_strided({tensor.numel()}, {1}); }

}  // namespace

DeviceInside::DeviceInside(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device, RankGrid grid, int rank)
    : exchange_(std::move(group), device),
      device_(device),
      grid_(std::move(grid)),
      tails_(device),
      scaled_(device),
      summed_(device),
      gramians_(device) {
  TORCH_CHECK_VALUE(exchange_.size() == grid_.inside && exchange_.rank() == grid_.inside_of(rank),
                    "bucket_moo_ext: the group of ranks that share an objective must have the ", grid_.inside,
                    " ranks of the grid, in its order; got rank ", exchange_.rank(), " of ", exchange_.size());
}

DeviceInside::Cut DeviceInside::cut(const at::Tensor& bucket) const {
  const std::int64_t n = bucket.numel();
  const ShardLayout layout = shard_layout(n, size(), static_cast<std::size_t>(bucket.element_size()));
  const at::Tensor all = flat(bucket);
  const std::int64_t begin = rank() * layout.shard;
  return {.shards = all.narrow(0, 0, n - layout.tail),
          .own = all.narrow(0, begin, layout.shard),
          .tail = all.narrow(0, n - layout.tail, layout.tail),
          .part = all.narrow(0, begin, layout.shard + (is_last() ? layout.tail : 0))};
}

/// values = this rank's share times `from`, or times the values themselves if that is nullptr.
void DeviceInside::scale(void* values, const void* from, std::int64_t size, const at::Tensor& like,
                         const double* shares) const {
  cuda::ScaleArguments arguments;
  arguments.values = values;
  arguments.from = from;
  arguments.size = size;
  arguments.dtype = dtype_of(like.scalar_type(), "a bucket");
  arguments.coefficient = shares + rank();
  arguments.share = shares + rank();
  check_cuda(cuda::launch_scale(arguments, stream()), "enqueueing the scaling of a bucket");
}

void DeviceInside::mean_in_place(const at::Tensor& bucket, const double* shares) {
  const NvtxRange range("bucket_moo inside");
  const Cut cut = this->cut(bucket);
  if (cut.shards.numel() > 0) {
    scale(cut.shards.mutable_data_ptr(), nullptr, cut.shards.numel(), bucket, shares);
    exchange_.reduce_scatter(cut.own, cut.shards);
  }
  if (const auto bytes = static_cast<std::size_t>(cut.tail.nbytes()); bytes > 0) {
    const std::size_t total = static_cast<std::size_t>(size()) * bytes;
    cuda::DeviceRows rows;
    rows.base = tails_.reserve(total);
    rows.pitch = static_cast<std::int64_t>(bytes);
    rows.count = size();
    rows.size = cut.tail.numel();
    rows.dtype = dtype_of(bucket.scalar_type(), "a bucket");
    exchange_.all_gather(tails_.tensor(total), cut.tail.view(at::kByte));
    if (is_last()) {
      check_cuda(cuda::launch_combine(rows, shares, cut.tail.mutable_data_ptr(), stream()),
                 "enqueueing the mean of tails");
    }
  }
}

void DeviceInside::gather_parts(const at::Tensor& bucket) {
  const NvtxRange range("bucket_moo inside");
  const Cut cut = this->cut(bucket);
  exchange_.all_gather(cut.shards.view(at::kByte));
  exchange_.broadcast(cut.tail, size() - 1);
}

void DeviceInside::mean_to_shard(const at::Tensor& output, const at::Tensor& input, const double* shares) {
  const NvtxRange range("bucket_moo inside");
  scaled_.reserve(input.nbytes());
  const at::Tensor scaled = scaled_.tensor(input.nbytes()).view(input.scalar_type());
  scale(scaled.mutable_data_ptr(), input.const_data_ptr(), input.numel(), input, shares);
  exchange_.reduce_scatter(flat(output), scaled);
}

void DeviceInside::mean_across(const at::Tensor& input, std::int64_t shard, const double* shares) {
  const NvtxRange range("bucket_moo inside");
  const std::size_t shard_bytes = static_cast<std::size_t>(shard * input.element_size());
  std::byte* next = scaled_.reserve(input.nbytes());
  const auto* const from = static_cast<const std::byte*>(input.const_data_ptr());
  // First the shards of the across group of the first rank inside, and so on. What lies side by side is one scaling.
  int run = 0;
  const int count = static_cast<int>(grid_.ranks.size());
  const auto source = [&](int place) { return grid_.at(place % grid_.across(), place / grid_.across()); };
  for (int place = 0; place < count; place += run) {
    const int first = source(place);
    for (run = 1; place + run < count && source(place + run) == first + run; ++run) {
    }
    scale(next, from + static_cast<std::size_t>(first) * shard_bytes, run * shard, input, shares);
    next += static_cast<std::size_t>(run) * shard_bytes;
  }
  const std::size_t bytes = static_cast<std::size_t>(grid_.across()) * shard_bytes;
  summed_.reserve(bytes);
  const at::Tensor summed = summed_.tensor(bytes).view(input.scalar_type());
  exchange_.reduce_scatter(summed, scaled_.tensor(input.nbytes()).view(input.scalar_type()));
}

at::Tensor DeviceInside::summed_across(const at::Tensor& shard) const {
  const std::size_t bytes = static_cast<std::size_t>(grid_.across()) * shard.nbytes();
  return summed_.capacity() < bytes ? at::Tensor() : summed_.tensor(bytes).view(shard.scalar_type());
}

cuda::GramianParts DeviceInside::sum_over_parts(const cuda::GramianParts& parts, const StepHeader* header, int k_bound,
                                                std::size_t bytes) {
  return gather_gramians(bytes, [&](double* own) {
    check_cuda(cuda::launch_sum_gramians(header, parts, k_bound, own, stream()), "enqueueing the sum of Gramians");
  });
}

cuda::GramianParts DeviceInside::gather_gramians(std::size_t bytes, const std::function<void(double*)>& write) {
  const NvtxRange range("bucket_moo exchange");
  const std::size_t total = static_cast<std::size_t>(size()) * bytes;
  std::byte* const gramians = gramians_.reserve(total);
  write(reinterpret_cast<double*>(gramians + static_cast<std::size_t>(rank()) * bytes));
  exchange_.all_gather(gramians_.tensor(total));
  cuda::GramianParts of_all;
  of_all.messages = gramians;
  of_all.pitch = static_cast<std::int64_t>(bytes);
  of_all.world = size();
  return of_all;
}

void DeviceInside::keep_memory() {
  for (DeviceBuffer* const buffer : {&tails_, &scaled_, &summed_, &gramians_}) {
    buffer->keep_all();
  }
}

std::size_t DeviceInside::scratch_bytes() const {
  return tails_.capacity() + scaled_.capacity() + summed_.capacity() + gramians_.capacity();
}

}  // namespace bucket_moo
