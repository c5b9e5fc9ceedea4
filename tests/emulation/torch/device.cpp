// Streams, events and memory for torch.
#include "device.hpp"

#include <ATen/Functions.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <mutex>
#include <new>
#include <utility>

#include "memory.hpp"
#include "streams.hpp"

namespace bucket_moo::emulation {
namespace {

const c10::Device kDevice(c10::DeviceType::CUDA, 0);

/// Streams of one priority in torch's pool.
constexpr std::size_t kPooledStreams = 32;

/// By torch's number. 0 is the legacy stream, which torch uses by default; the others wait for it as little as torch's.
std::vector<cudaStream_t>& handles() {
  static auto* const instance = new std::vector<cudaStream_t>{nullptr};
  return *instance;
}

thread_local c10::StreamId current = 0;

c10::Stream stream_of(c10::StreamId id) { return c10::Stream(c10::Stream::UNSAFE, kDevice, id); }

/// One of a few, in turns, as torch's.
c10::Stream pooled_stream() {
  static auto* const pool = new std::vector<c10::Stream>;
  static std::size_t taken = 0;
  const std::lock_guard lock(runtime_mutex());
  if (pool->size() < kPooledStreams) pool->push_back(new_stream());
  return (*pool)[taken++ % kPooledStreams];
}

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }

  c10::Stream getStream(c10::Device) const override { return stream_of(current); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream_of(0); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return pooled_stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return new_stream(); }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    return stream_of(std::exchange(current, stream.id()));
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override { return handle_of(stream); }
  bool queryStream(const c10::Stream& stream) const override {
    check(cudaStreamQuery(handle_of(stream)), "cudaStreamQuery");
    return true;
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    check(cudaStreamSynchronize(handle_of(stream)), "cudaStreamSynchronize");
  }
  bool isStreamCapturing(const c10::Stream& stream) const override {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(handle_of(stream), &status), "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
  }
  void synchronizeDevice(c10::DeviceIndex) const override { check(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }

  void record(void** event, const c10::Stream& stream, c10::DeviceIndex, c10::EventFlag) const override {
    if (*event == nullptr) {
      cudaEvent_t made = nullptr;
      check(cudaEventCreateWithFlags(&made, cudaEventDisableTiming), "cudaEventCreate");
      *event = made;
    }
    check(cudaEventRecord(static_cast<cudaEvent_t>(*event), handle_of(stream)), "cudaEventRecord");
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event == nullptr) return;
    check(cudaStreamWaitEvent(handle_of(stream), static_cast<cudaEvent_t>(event)), "cudaStreamWaitEvent");
  }
  bool queryEvent(void* event) const override {
    if (event != nullptr) check(cudaEventQuery(static_cast<cudaEvent_t>(event)), "cudaEventQuery");
    return true;
  }
  void synchronizeEvent(void* event) const override {
    if (event != nullptr) check(cudaEventSynchronize(static_cast<cudaEvent_t>(event)), "cudaEventSynchronize");
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override {
    if (event != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(event));
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    record_use(data.get(), *find_stream(handle_of(stream)));
  }
};

/// A block, and the stream on which it is free again.
struct Owned {
  void* pointer;
  cudaStream_t stream;
};

std::atomic<bool> cached = false;

/// As torch's, but that nothing is cached unless a test says so: a stream that is captured has a pool of its own, and
/// anybody else has to ask CUDA for memory, which cannot be while something is captured.
class Allocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &drop, kDevice};
    const std::lock_guard lock(runtime_mutex());
    const cudaStream_t stream = handle_of(stream_of(current));
    if (!find_stream(stream)->capture && !cached) check(not_beside_captures(), "cudaMalloc");
    void* const pointer = emulation::allocate(Place::device, bytes, find_stream(stream));
    TORCH_CHECK(pointer != nullptr, "out of memory");
    return {pointer, new Owned{pointer, stream}, &drop, kDevice};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, handle_of(stream_of(current))), "cudaMemcpyAsync");
  }

 private:
  static void drop(void* context) {
    const auto* const owned = static_cast<Owned*>(context);
    if (owned == nullptr) return;
    release(Place::device, owned->pointer, find_stream(owned->stream));
    delete owned;
  }
};

/// Of pinned memory, which is no stream's.
class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    void* pointer = nullptr;
    if (bytes > 0) check(cudaHostAlloc(&pointer, bytes, 0), "cudaHostAlloc");
    return {pointer, pointer, &drop, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  static void drop(void* pointer) {
    if (pointer != nullptr) cudaFreeHost(pointer);
  }
};

/// Without it torch says that there is no accelerator.
class Hooks final : public at::CUDAHooksInterface {
 public:
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::Device getDeviceFromPtr(void*) const override { return kDevice; }
  bool isPinnedPtr(const void* pointer) const override { return look_up({pointer, 1}) == Known::pinned; }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    static auto* const instance = new PinnedAllocator;
    return instance;
  }
};

}  // namespace

c10::Allocator* device_allocator() {
  static auto* const instance = new Allocator;
  return instance;
}

void install_device() {
  TORCH_CHECK(c10::impl::device_guard_impl_registry[static_cast<std::size_t>(c10::DeviceType::CUDA)] == nullptr,
              "this torch has CUDA, or the emulated one already");
  // Torch made those of no CUDA when it was imported, and keeps them for good.
  static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));
  new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) Hooks;
  c10::impl::DeviceGuardImplRegistrar(c10::DeviceType::CUDA, new Guard);
  c10::SetAllocator(c10::DeviceType::CUDA, device_allocator());
  install_operators();
  install_timer();
}

void check(cudaError_t status, const char* what) {
  TORCH_CHECK(status == cudaSuccess, "CUDA emulation: ", what, ": ", cudaGetErrorName(status));
}

void set_cached(bool is_cached) { cached = is_cached; }

c10::Stream current_stream() { return stream_of(current); }

c10::Stream new_stream() {
  const std::lock_guard lock(runtime_mutex());
  cudaStream_t made = nullptr;
  check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "cudaStreamCreate");
  handles().push_back(made);
  return stream_of(static_cast<c10::StreamId>(handles().size() - 1));
}

cudaStream_t handle_of(const c10::Stream& stream) {
  const std::lock_guard lock(runtime_mutex());
  return handles().at(static_cast<std::size_t>(stream.id()));
}

at::Tensor on_host(const at::Tensor& tensor) {
  return at::from_blob(tensor.mutable_data_ptr(), tensor.sizes(), tensor.strides(),
                       at::TensorOptions().dtype(tensor.scalar_type()).device(at::kCPU));
}

void enqueue_on_current(const char* name, long Operations::* kind, const std::vector<at::Tensor>& reads,
                        const std::vector<at::Tensor>& writes, std::function<void()> work) {
  Task task{.name = name, .kind = kind, .run = [work = std::move(work)] {
              work();
              return cudaSuccess;
            }};
  const auto add = [](std::vector<Range>& ranges, const std::vector<at::Tensor>& tensors) {
    for (const at::Tensor& tensor : tensors) {
      if (tensor.numel() == 0) continue;
      std::int64_t last = 0;
      for (std::int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
      ranges.push_back({tensor.const_data_ptr(), static_cast<std::size_t>(last + 1) * tensor.element_size()});
    }
  };
  add(task.reads, reads);
  add(task.writes, writes);
  check(enqueue(handle_of(current_stream()), task), name);
}

}  // namespace bucket_moo::emulation
