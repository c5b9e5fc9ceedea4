// The few operators that torch's own functions need on a device; every other one goes through the CPU and waits.
#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include "device.hpp"
#include "memory.hpp"

namespace bucket_moo::emulation {
namespace {

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, device_allocator(), kKeys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, device_allocator(), kKeys, c10::dtype_or_default(dtype));
}

/// By a kernel, as torch does it.
at::Tensor& zero_(at::Tensor& self) {
  enqueue_on_current("fill", &Operations::kernels, {}, {self}, [alias = on_host(self)]() mutable { alias.zero_(); });
  return self;
}

at::Tensor& fill_(at::Tensor& self, const at::Scalar& value) {
  enqueue_on_current("fill", &Operations::kernels, {}, {self},
                     [alias = on_host(self), value]() mutable { alias.fill_(value); });
  return self;
}

bool is_on_device(const at::Tensor& tensor) { return tensor.device().is_cuda(); }

/// As torch copies: between devices by a kernel; else by bytes, for which the host waits unless it is told not to.
at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  if (self.numel() == 0) return self;
  if (is_on_device(self) && is_on_device(source)) {
    const at::Tensor from = source.expand_as(self);
    enqueue_on_current("copy", &Operations::copies, {from}, {self},
                       [to = on_host(self), from = on_host(from)]() mutable { to.copy_(from); });
    return self;
  }
  const at::Tensor from = source.to(self.scalar_type()).expand_as(self).contiguous();
  const at::Tensor to = self.is_contiguous() ? self : at::empty_like(self, at::MemoryFormat::Contiguous);
  const bool to_device = is_on_device(self);
  const c10::Stream stream = current_stream();
  check(cudaMemcpyAsync(to.mutable_data_ptr(), from.const_data_ptr(), to.nbytes(),
                        to_device ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost, handle_of(stream)),
        "cudaMemcpyAsync");
  const void* const host = to_device ? from.const_data_ptr() : to.const_data_ptr();
  if (!non_blocking || (to_device && look_up({host, 1}) != Known::pinned)) {
    check(cudaStreamSynchronize(handle_of(stream)), "cudaStreamSynchronize");
  }
  if (!to.is_same(self)) self.copy_(to);
  return self;
}

void record_stream(at::Tensor& self, c10::Stream stream) {
  record_use(self.const_data_ptr(), *find_stream(handle_of(stream)));
}

const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  c10::TensorImpl* const impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  const std::size_t needed = static_cast<std::size_t>(self.storage_offset() + self.numel()) * self.element_size();
  c10::StorageImpl* const storage = self.storage().unsafeGetStorageImpl();
  if (needed > storage->nbytes()) {
    storage->set_data_ptr_noswap(device_allocator()->allocate(needed));
    storage->set_nbytes(needed);
  }
  return self;
}

/// By which the fallback brings results back.
at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  at::Tensor result = to;
  if (to.sizes() != self.sizes()) resize_(to, self.sizes(), {});
  return copy_(result, self, false);
}

void on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) { at::native::cpu_fallback(op, stack); }

}  // namespace

void install_operators() {
  static auto* const aten =
      new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  aten->impl("empty.memory_format", TORCH_FN(empty));
  aten->impl("empty_strided", TORCH_FN(empty_strided));
  aten->impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  aten->impl("view", TORCH_FN(at::native::view));
  aten->impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  aten->impl("zero_", TORCH_FN(zero_));
  aten->impl("fill_.Scalar", TORCH_FN(fill_));
  aten->impl("copy_", TORCH_FN(copy_));
  aten->impl("resize_", TORCH_FN(resize_));
  aten->impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  aten->impl("record_stream", TORCH_FN(record_stream));
  static auto* const all = new torch::Library(torch::Library::IMPL, "_", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  all->fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

}  // namespace bucket_moo::emulation
