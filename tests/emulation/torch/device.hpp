// The emulated GPU as torch sees it: cuda:0.
#ifndef BUCKET_MOO_EMULATION_TORCH_DEVICE_HPP
#define BUCKET_MOO_EMULATION_TORCH_DEVICE_HPP

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/Stream.h>
#include <cuda_runtime_api.h>

#include <functional>
#include <vector>

#include "operations.hpp"

namespace bucket_moo::emulation {

/// Makes the device known to torch, once; torch must have no CUDA of its own.
void install_device();
void install_operators();
void install_timer();

c10::Allocator* device_allocator();

/// Raises RuntimeError for what a CUDA call says.
void check(cudaError_t status, const char* what);

/// Whether torch has all memory that it needs.
void set_cached(bool is_cached);

c10::Stream current_stream();
c10::Stream new_stream();
cudaStream_t handle_of(const c10::Stream& stream);

/// Runs `work` on the current stream, where the memory of the tensors is the host's too.
void enqueue_on_current(const char* name, long Operations::* kind, const std::vector<at::Tensor>& reads,
                        const std::vector<at::Tensor>& writes, std::function<void()> work);

/// The same memory as a CPU tensor. Keeps nothing alive, as a kernel's arguments do not.
at::Tensor on_host(const at::Tensor& tensor);

}  // namespace bucket_moo::emulation

#endif  // BUCKET_MOO_EMULATION_TORCH_DEVICE_HPP
