#include "engine/arguments.hpp"

#include <c10/util/Exception.h>

#include <cstddef>
#include <string>

#include "torch_types/dtype.hpp"

namespace bucket_moo {
namespace {

std::string name_of(c10::Device device) { return device.is_cpu() ? "the CPU" : device.str(); }

/// Not so: subclasses that dispatch in Python (DTensor), those inside torch.func's transformations, zero tensors, and
/// tensors whose storage was freed. `tensor`: contiguous.
bool holds_its_elements(const at::Tensor& tensor) {
  if (tensor.key_set().has(c10::DispatchKey::Python) || !tensor.has_storage()) {
    return false;
  }
  const auto end = static_cast<std::size_t>(tensor.storage_offset()) * tensor.itemsize() + tensor.nbytes();
  return tensor.numel() == 0 || (tensor.const_data_ptr() != nullptr && tensor.storage().nbytes() >= end);
}

void check_dense(const at::Tensor& tensor, c10::Device device, const char* what) {
  TORCH_CHECK_VALUE(tensor.defined(), "bucket_moo_ext: ", what, " must be a tensor, got an undefined one");
  TORCH_CHECK_VALUE(tensor.device() == device, "bucket_moo_ext: ", what, " must be on ", name_of(device),
                    ", where this state reduces; got device ", tensor.device());
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided && !tensor.is_nested(), "bucket_moo_ext: ", what,
                    " must be dense; got ",
                    tensor.is_nested() ? "a nested tensor" : c10::str("layout ", tensor.layout()));
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "bucket_moo_ext: ", what, " must be contiguous; got sizes ", tensor.sizes(),
                    " with strides ", tensor.strides());
  TORCH_CHECK_VALUE(!tensor.is_neg(), "bucket_moo_ext: ", what, " must not be a negative view; use resolve_neg()");
  dtype_of(tensor.scalar_type(), what);
  TORCH_CHECK_VALUE(holds_its_elements(tensor), "bucket_moo_ext: ", what,
                    " must hold its elements itself; got a tensor ",
                    "that keeps them elsewhere (for a DTensor give its to_local()) or has none");
}

void check_sparse(const at::Tensor& bucket, c10::Device device, const char* what) {
  TORCH_CHECK_VALUE(bucket.device() == device, "bucket_moo_ext: ", what, " must be on ", name_of(device),
                    "; got device ", bucket.device());
  dtype_of(bucket.scalar_type(), what);
}

void check_shards(const at::Tensor& output, const at::Tensor& input, int rank, int world) {
  TORCH_CHECK_TYPE(output.scalar_type() == input.scalar_type(),
                   "bucket_moo_ext: output and input must have the same dtype; got ", output.scalar_type(), " and ",
                   input.scalar_type());
  TORCH_CHECK_VALUE(input.numel() == output.numel() * world, "bucket_moo_ext: input must have world_size * ",
                    "output.numel() = ", world, " * ", output.numel(), " elements; got ", input.numel());
  const auto* const out = static_cast<const std::byte*>(output.const_data_ptr());
  const auto* const in = static_cast<const std::byte*>(input.const_data_ptr());
  const bool apart = out + output.nbytes() <= in || in + input.nbytes() <= out;
  const bool own_shard = out == in + static_cast<std::size_t>(rank) * output.nbytes();
  TORCH_CHECK_VALUE(apart || own_shard,
                    "bucket_moo_ext: output must be apart from input or exactly its own rank's shard of it");
}

}  // namespace

void check_arguments(const Reduction& reduction, c10::Device device, int rank, int world) {
  switch (reduction.operation) {
    case Operation::ddp_bucket:
      if (reduction.output.is_sparse()) {
        check_sparse(reduction.output, device, "a DDP bucket");
      } else {
        check_dense(reduction.output, device, "a DDP bucket");
      }
      break;
    case Operation::all_reduce:
      check_dense(reduction.output, device, "tensor");
      break;
    case Operation::reduce_scatter:
    case Operation::reduce_scatter_inside:
      check_dense(reduction.output, device, "output");
      check_dense(reduction.input, device, "input");
      check_shards(reduction.output, reduction.input, rank, world);
      break;
    case Operation::invalid:
    case Operation::end_of_pass:
      break;
  }
}

}  // namespace bucket_moo
