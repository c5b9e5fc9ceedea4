#include "c10d_collective/sparse_mean.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <vector>

namespace bucket_moo {
namespace {

/// Concatenates [..., m_r] tensors of all ranks along their last dimension, in rank order.
at::Tensor gather_columns(const at::Tensor& own, int rank, int world, const AllGather& all_gather) {
  const at::Tensor counts = at::zeros({world}, own.options().dtype(at::kLong));
  counts[rank].fill_(own.size(-1));
  all_gather(counts);
  const at::Tensor host_counts = counts.cpu();
  std::vector<std::int64_t> sizes = own.sizes().vec();
  sizes.back() = host_counts.max().item<std::int64_t>();
  sizes.insert(sizes.begin(), world);
  const at::Tensor blocks = at::zeros(sizes, own.options());
  blocks[rank].narrow(-1, 0, own.size(-1)).copy_(own);
  all_gather(blocks);
  std::vector<at::Tensor> columns;
  for (std::int64_t r = 0; r < world; ++r) {
    columns.push_back(blocks[r].narrow(-1, 0, host_counts[r].item<std::int64_t>()));
  }
  return at::cat(columns, -1);
}

}  // namespace

void reduce_sparse_mean(at::Tensor gradient, int rank, int world, const AllGather& all_gather) {
  TORCH_WARN_ONCE(
      "bucket_moo_ext: a sparse gradient bucket is averaged like plain DDP does; conflicts are resolved in dense "
      "buckets only (use sparse=False in nn.Embedding to include it)");
  const at::Tensor own = gradient.coalesce();
  const at::Tensor indices = gather_columns(own.indices(), rank, world, all_gather);
  const at::Tensor values =
      gather_columns(own.values().movedim(0, -1).contiguous(), rank, world, all_gather).movedim(-1, 0);
  gradient.copy_(at::sparse_coo_tensor(indices, values / world, gradient.sizes()).coalesce());
}

}  // namespace bucket_moo
