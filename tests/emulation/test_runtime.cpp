// The emulated CUDA runtime itself: every check is shown a program that is right, and one that is not.
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "checks.hpp"
#include "emulation.hpp"
#include "memory.hpp"
#include "operations.hpp"

// Last, for it has words of the language that other headers use too.
#include <cuda_runtime.h>

namespace {

namespace emulation = bucket_moo::emulation;

constexpr int kCount = 3000;  // floats, on three pages
constexpr std::size_t kBytes = kCount * sizeof(float);

void add_one(float* values, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) values[i] += 1.0F;
}

void read_into(const float* from, float* to) {
  if (threadIdx.x == 0) *to = from[kCount - 1];
}

void tell(int* message, bool fenced) {
  if (threadIdx.x != 0) return;
  message[1] = 7;
  if (fenced) __threadfence_system();
  message[0] = 1;
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), cudaStream_t stream, Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1);
  config.blockDim = dim3(32);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

/// Streams, events and memory of a test; nothing is used again.
struct Setup {
  Setup() {
    for (cudaStream_t* const stream : {&a, &b}) CHECK(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking) == 0);
    for (cudaEvent_t* const event : {&ready, &done})
      CHECK(cudaEventCreateWithFlags(event, cudaEventDisableTiming) == 0);
    for (float** const block : {&x, &y}) CHECK(cudaMalloc(reinterpret_cast<void**>(block), kBytes) == cudaSuccess);
    CHECK(cudaHostAlloc(reinterpret_cast<void**>(&pinned), kBytes, 0) == cudaSuccess);
    for (float* const block : {x, y}) CHECK(cudaMemsetAsync(block, 0, kBytes, a) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    emulation::take_faults();
  }
  ~Setup() {
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    for (float* const block : {x, y}) CHECK(cudaFree(block) == cudaSuccess);
    CHECK(cudaFreeHost(pinned) == cudaSuccess);
    for (const cudaStream_t stream : {a, b}) CHECK(cudaStreamDestroy(stream) == cudaSuccess);
    for (const cudaEvent_t event : {ready, done}) CHECK(cudaEventDestroy(event) == cudaSuccess);
  }
  Setup(const Setup&) = delete;
  Setup& operator=(const Setup&) = delete;

  cudaStream_t a = nullptr;
  cudaStream_t b = nullptr;
  cudaEvent_t ready = nullptr;
  cudaEvent_t done = nullptr;
  float* x = nullptr;
  float* y = nullptr;
  float* pinned = nullptr;
};

/// Whether something was found, and what it says.
bool found(const std::string& part) {
  const std::vector<std::string> faults = emulation::take_faults();
  for (const std::string& fault : faults) {
    if (fault.find(part) != std::string::npos) return true;
  }
  for (const std::string& fault : faults) std::printf("instead: %s\n", fault.c_str());
  return false;
}

bool fine() {
  const std::vector<std::string> faults = emulation::take_faults();
  for (const std::string& fault : faults) std::printf("found: %s\n", fault.c_str());
  return faults.empty();
}

void arguments_are_checked() {
  const Setup s;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1);
  config.blockDim = dim3(1024);
  const auto refused = [&](cudaError_t error) { return cudaLaunchKernelEx(&config, add_one, s.x, kCount) == error; };
  CHECK(refused(cudaSuccess));
  config.blockDim = dim3(1025);
  CHECK(refused(cudaErrorInvalidConfiguration));
  config.blockDim = dim3(32);
  config.gridDim = dim3(0x80000000u);
  CHECK(refused(cudaErrorInvalidConfiguration));
  config.gridDim = dim3(1, 65536);
  CHECK(refused(cudaErrorInvalidConfiguration));
  config.gridDim = dim3(1);
  config.dynamicSmemBytes = 48 * 1024 + 1;
  CHECK(refused(cudaErrorInvalidValue));
  CHECK(cudaFuncSetAttribute(add_one, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 * 1024) == cudaSuccess);
  CHECK(refused(cudaSuccess));
  CHECK(cudaFuncSetAttribute(add_one, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 * 1024) != cudaSuccess);

  std::vector<float> host(kCount);
  constexpr cudaMemcpyKind kIn = cudaMemcpyHostToDevice;
  CHECK(cudaMemcpyAsync(nullptr, host.data(), 4, kIn, s.a) == cudaErrorInvalidValue);
  CHECK(cudaMemcpyAsync(nullptr, nullptr, 0, kIn, s.a) == cudaSuccess);
  CHECK(cudaMemcpyAsync(s.x, host.data(), kBytes + 1, kIn, s.a) == cudaErrorInvalidValue);
  CHECK(cudaMemcpyAsync(s.x, s.y, kBytes, kIn, s.a) == cudaErrorInvalidMemcpyDirection);
  CHECK(cudaMemcpyAsync(s.x, s.pinned, kBytes, cudaMemcpyDeviceToDevice, s.a) == cudaErrorInvalidMemcpyDirection);
  CHECK(cudaMemsetAsync(nullptr, 0, 1, s.a) == cudaErrorInvalidValue);
  CHECK(cudaMemsetAsync(s.x, 0, kBytes + 1, s.a) == cudaErrorInvalidValue);
  CHECK(fine());
  CHECK(cudaMemcpyAsync(s.x, s.x + 1, 8, cudaMemcpyDeviceToDevice, s.a) == cudaSuccess);
  CHECK(found("onto itself"));

  constexpr std::size_t kPitch = 0x80000000u;  // 2^31
  CHECK(cudaMemcpy2DAsync(s.x, 4, s.y, 8, 4, 9, cudaMemcpyDeviceToDevice, s.a) == cudaSuccess);
  CHECK(cudaMemcpy2DAsync(s.x, 4, s.y, 8, 5, 9, cudaMemcpyDeviceToDevice, s.a) == cudaErrorInvalidPitchValue);
  CHECK(cudaMemcpy2DAsync(s.x, 4, s.y, kPitch, 4, 1, cudaMemcpyDeviceToDevice, s.a) == cudaErrorInvalidPitchValue);
  CHECK(cudaMemcpy2DAsync(s.x, 4, s.y, kPitch - 1, 4, 1, cudaMemcpyDeviceToDevice, s.a) == cudaSuccess);
  emulation::set_max_pitch(7);
  CHECK(cudaMemcpy2DAsync(s.x, 4, s.y, 8, 4, 9, cudaMemcpyDeviceToDevice, s.a) == cudaErrorInvalidPitchValue);
  emulation::set_max_pitch(kPitch - 1);

  int something = 0;
  const auto none = reinterpret_cast<cudaStream_t>(&something);
  CHECK(cudaMemsetAsync(s.x, 0, 4, none) == cudaErrorInvalidResourceHandle);
  CHECK(cudaStreamSynchronize(none) == cudaErrorInvalidResourceHandle);
  CHECK(cudaEventRecord(reinterpret_cast<cudaEvent_t>(&something), s.a) == cudaErrorInvalidResourceHandle);
  CHECK(cudaSetDevice(1) == cudaErrorInvalidDevice);
  CHECK(cudaFree(s.x + 1) == cudaErrorInvalidValue);
  CHECK(cudaFree(s.pinned) == cudaErrorInvalidValue);
  CHECK(fine());
}

void what_is_asked_for_is_counted() {
  const Setup s;
  const emulation::Operations before = emulation::operations();
  CHECK(launch(add_one, s.a, s.x, kCount) == cudaSuccess);
  CHECK(cudaEventRecord(s.ready, s.a) == cudaSuccess);
  CHECK(cudaStreamWaitEvent(s.b, s.ready) == cudaSuccess);
  CHECK(cudaMemsetAsync(s.y, 0, kBytes, s.b) == cudaSuccess);
  emulation::Operations now = emulation::operations();
  CHECK(now.kernels - before.kernels == 1);
  CHECK(now.event_records - before.event_records == 1);
  CHECK(now.event_waits - before.event_waits == 1);
  CHECK(now.memsets - before.memsets == 1);
  CHECK(now.synchronisations == before.synchronisations);
  CHECK(now.on_legacy_stream == before.on_legacy_stream);
  CHECK(cudaMemset(s.y, 0, 4) == cudaSuccess);
  CHECK(emulation::operations().on_legacy_stream - now.on_legacy_stream == 1);
  // A copy to memory that is not pinned is done when the call returns.
  now = emulation::operations();
  float host = 0;
  CHECK(cudaMemcpyAsync(s.pinned, s.x, 4, cudaMemcpyDeviceToHost, s.a) == cudaSuccess);
  CHECK(emulation::operations().synchronisations == now.synchronisations);
  CHECK(cudaMemcpyAsync(&host, s.x, 4, cudaMemcpyDeviceToHost, s.a) == cudaSuccess);
  CHECK(emulation::operations().synchronisations - now.synchronisations == 1);
  CHECK(host == 1.0F);
  emulation::take_faults();  // the legacy stream's
}

/// Two pieces of work on two streams, with an event between them or without.
void streams_wait_for_each_other() {
  using Work = std::function<cudaError_t(const Setup&, cudaStream_t)>;
  const Work writes = [](const Setup& s, cudaStream_t on) { return launch(add_one, on, s.x, kCount); };
  const Work reads = [](const Setup& s, cudaStream_t on) { return launch(read_into, on, s.x, s.y); };
  const Work copies_to = [](const Setup& s, cudaStream_t on) {
    return cudaMemcpyAsync(s.x, s.y, kBytes, cudaMemcpyDeviceToDevice, on);
  };
  const Work copies_out = [](const Setup& s, cudaStream_t on) {
    return cudaMemcpyAsync(s.pinned, s.x, kBytes, cudaMemcpyDeviceToHost, on);
  };
  const Work fills = [](const Setup& s, cudaStream_t on) { return cudaMemsetAsync(s.x, 0, kBytes, on); };
  struct Case {
    Work first, second;
    const char* fault;  // nullptr: none
  };
  const Case cases[] = {
      {writes, writes, "wrote"},   {writes, reads, "wrote"},     {writes, copies_out, "wrote"},
      {reads, writes, "reads"},    {copies_out, fills, "reads"}, {fills, copies_out, "wrote"},
      {copies_to, reads, "wrote"}, {reads, copies_to, "reads"},  {reads, copies_out, nullptr},
  };
  for (const Case& c : cases) {
    checks::context = "case " + std::to_string(&c - cases);
    for (const bool waits : {true, false}) {
      const Setup s;
      CHECK(c.first(s, s.a) == cudaSuccess);
      CHECK(cudaEventRecord(s.ready, s.a) == cudaSuccess);
      if (waits) CHECK(cudaStreamWaitEvent(s.b, s.ready) == cudaSuccess);
      CHECK(c.second(s, s.b) == cudaSuccess);
      CHECK(waits || c.fault == nullptr ? fine() : found(c.fault));
    }
  }
  checks::context.clear();
  {  // an event is of the moment it was recorded
    const Setup s;
    CHECK(cudaEventRecord(s.ready, s.a) == cudaSuccess);
    CHECK(launch(add_one, s.a, s.x, kCount) == cudaSuccess);
    CHECK(cudaStreamWaitEvent(s.b, s.ready) == cudaSuccess);
    CHECK(launch(read_into, s.b, s.x, s.y) == cudaSuccess);
    CHECK(found("nobody waited"));
  }
  {  // the host may wait in a stream's place
    const Setup s;
    CHECK(launch(add_one, s.a, s.x, kCount) == cudaSuccess);
    CHECK(cudaStreamSynchronize(s.a) == cudaSuccess);
    CHECK(launch(read_into, s.b, s.x, s.y) == cudaSuccess);
    CHECK(fine());
  }
  {  // the legacy stream waits for blocking streams, and only for those
    const Setup s;
    cudaStream_t blocking = nullptr;
    CHECK(cudaStreamCreateWithFlags(&blocking, cudaStreamDefault) == cudaSuccess);
    CHECK(launch(add_one, blocking, s.x, kCount) == cudaSuccess);
    CHECK(launch(add_one, nullptr, s.x, kCount) == cudaSuccess);
    CHECK(launch(add_one, blocking, s.x, kCount) == cudaSuccess);
    CHECK(fine());
    CHECK(launch(add_one, s.a, s.x, kCount) == cudaSuccess);
    CHECK(found("nobody waited"));
    CHECK(cudaStreamDestroy(blocking) == cudaSuccess);
  }
}

void the_host_waits_too() {
  const Setup s;
  s.pinned[5] = 3.0F;
  CHECK(cudaMemcpyAsync(s.x, s.pinned, kBytes, cudaMemcpyHostToDevice, s.a) == cudaSuccess);
  CHECK(s.pinned[5] == 3.0F);
  CHECK(fine());
  s.pinned[5] = 4.0F;  // may not have been read
  CHECK(found("the host writes"));
  CHECK(cudaStreamSynchronize(s.a) == cudaSuccess);
  s.pinned[5] = 4.0F;
  CHECK(fine());

  CHECK(launch(add_one, s.a, s.x, kCount) == cudaSuccess);
  CHECK(cudaMemcpyAsync(s.pinned, s.x, kBytes, cudaMemcpyDeviceToHost, s.a) == cudaSuccess);
  CHECK(cudaEventRecord(s.done, s.a) == cudaSuccess);
  CHECK(s.pinned[5] == 4.0F);
  CHECK(found("the host reads"));
  CHECK(cudaMemcpyAsync(s.pinned, s.x, kBytes, cudaMemcpyDeviceToHost, s.a) == cudaSuccess);
  CHECK(cudaEventRecord(s.done, s.a) == cudaSuccess);
  CHECK(cudaEventSynchronize(s.done) == cudaSuccess);
  CHECK(s.pinned[5] == 4.0F);
  CHECK(fine());

  CHECK(static_cast<volatile float*>(s.x)[5] == 4.0F);
  CHECK(found("the host touches"));
}

/// A kernel may write for a host that does not wait, if it fences.
void a_fence_tells_the_host() {
  for (const bool fenced : {true, false}) {
    const Setup s;
    auto* const message = reinterpret_cast<volatile int*>(s.pinned);
    message[0] = 0;
    int seen[2] = {-1, -1};
    emulation::on_system_fence([&] { std::memcpy(seen, const_cast<int*>(message), sizeof(seen)); });
    CHECK(launch(tell, s.a, reinterpret_cast<int*>(s.pinned), fenced) == cudaSuccess);
    emulation::on_system_fence({});
    CHECK(seen[0] == (fenced ? 0 : -1));
    CHECK(seen[1] == (fenced ? 7 : -1));
    CHECK(message[0] == 1);
    CHECK(fenced ? fine() : found("the host reads"));
  }
}

void memory_is_not_used_after_its_end() {
  const Setup s;
  emulation::Stream* const a = emulation::find_stream(s.a);
  emulation::Stream* const b = emulation::find_stream(s.b);
  const auto make = [&] { return static_cast<float*>(emulation::allocate(emulation::Place::device, kBytes, a)); };
  const auto drop = [&](float* block) { return emulation::release(emulation::Place::device, block, a); };

  CHECK(launch(add_one, s.a, s.x, kCount) == cudaSuccess);
  float* block = make();  // of a stream that has work to do before
  CHECK(launch(add_one, s.b, block, kCount) == cudaSuccess);
  CHECK(found("nobody waited"));
  CHECK(drop(block));
  CHECK(found("is freed while"));

  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  block = make();
  CHECK(launch(add_one, s.b, block, kCount) == cudaSuccess);
  emulation::record_use(block, *b);
  CHECK(drop(block));
  CHECK(fine());
  CHECK(launch(add_one, s.a, block, kCount) == cudaSuccess);
  CHECK(found("that was freed"));
  CHECK(!drop(block));

  block = make();
  CHECK(launch(add_one, s.a, block, kCount) == cudaSuccess);
  CHECK(drop(block));  // on its own stream it may be reused at once
  CHECK(fine());

  block = make();
  CHECK(launch(add_one, s.a, block, kCount + 1024) == cudaSuccess);  // into the page behind it
  CHECK(found("of 12000 of device memory"));
}

/// Captures what `work` asks for, with stream a in a capture.
cudaError_t capture(const Setup& s, const std::function<void()>& work, cudaGraphExec_t* exec) {
  *exec = nullptr;
  CHECK(cudaStreamBeginCapture(s.a, cudaStreamCaptureModeGlobal) == cudaSuccess);
  work();
  cudaGraph_t graph = nullptr;
  const cudaError_t status = cudaStreamEndCapture(s.a, &graph);
  CHECK((status == cudaSuccess) == (graph != nullptr));
  if (status != cudaSuccess) return status;
  CHECK(cudaGraphInstantiate(exec, graph) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  return cudaSuccess;
}

float last_of(const Setup& s, const float* values) {
  float last = 0;
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(cudaMemcpyAsync(&last, values + kCount - 1, sizeof(last), cudaMemcpyDeviceToHost, s.a) == cudaSuccess);
  return last;
}

void graphs_are_recorded_and_replayed() {
  const Setup s;
  cudaGraphExec_t exec = nullptr;
  const auto work = [&] {
    CHECK(launch(add_one, s.a, s.x, kCount) == cudaSuccess);
    CHECK(cudaEventRecord(s.ready, s.a) == cudaSuccess);
    CHECK(cudaStreamWaitEvent(s.b, s.ready) == cudaSuccess);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    CHECK(cudaStreamIsCapturing(s.b, &status) == cudaSuccess);
    CHECK(status == cudaStreamCaptureStatusActive);
    CHECK(cudaMemcpyAsync(s.y, s.x, kBytes, cudaMemcpyDeviceToDevice, s.b) == cudaSuccess);
    CHECK(cudaEventRecord(s.done, s.b) == cudaSuccess);
    CHECK(cudaStreamWaitEvent(s.a, s.done) == cudaSuccess);
  };
  CHECK(capture(s, work, &exec) == cudaSuccess);
  CHECK(last_of(s, s.x) == 0.0F);
  CHECK(cudaGraphLaunch(exec, s.a) == cudaSuccess);
  CHECK(cudaGraphLaunch(exec, s.a) == cudaSuccess);
  CHECK(last_of(s, s.x) == 2.0F);
  CHECK(last_of(s, s.y) == 2.0F);
  CHECK(fine());
  CHECK(cudaGraphLaunch(exec, s.a) == cudaSuccess);
  CHECK(launch(read_into, s.b, s.x, s.y) == cudaSuccess);  // does not wait for the graph
  CHECK(found("nobody waited"));
  CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);

  // The streams of a graph are as free as others.
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  const auto race = [&] {
    CHECK(cudaEventRecord(s.ready, s.a) == cudaSuccess);
    CHECK(launch(add_one, s.a, s.x, kCount) == cudaSuccess);
    CHECK(cudaStreamWaitEvent(s.b, s.ready) == cudaSuccess);
    CHECK(launch(add_one, s.b, s.x, kCount) == cudaSuccess);
    CHECK(cudaEventRecord(s.done, s.b) == cudaSuccess);
    CHECK(cudaStreamWaitEvent(s.a, s.done) == cudaSuccess);
  };
  CHECK(capture(s, race, &exec) == cudaSuccess);
  CHECK(cudaGraphLaunch(exec, s.a) == cudaSuccess);
  CHECK(found("nobody waited"));
  CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);

  // What a graph uses must be there when it is launched.
  float* block = nullptr;
  CHECK(cudaMalloc(reinterpret_cast<void**>(&block), kBytes) == cudaSuccess);
  CHECK(capture(s, [&] { launch(add_one, s.a, block, kCount); }, &exec) == cudaSuccess);
  CHECK(cudaFree(block) == cudaSuccess);
  CHECK(cudaGraphLaunch(exec, s.a) == cudaSuccess);
  CHECK(found("that was freed"));
  CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);
}

void what_no_graph_can_hold_spoils_it() {
  const Setup s;
  float host = 0;
  void* block = nullptr;
  const std::function<cudaError_t()> unsupported[] = {
      [&] { return cudaMalloc(&block, 8); },
      [&] { return cudaHostAlloc(&block, 8, 0); },
      [&] { return cudaFree(s.x); },
      [&] { return cudaFreeHost(s.pinned); },
      [&] { return cudaDeviceSynchronize(); },
      [&] { return cudaStreamSynchronize(s.a); },
      [&] { return cudaStreamSynchronize(s.b); },
      [&] { return cudaEventSynchronize(s.ready); },
      [&] { return cudaEventQuery(s.ready); },
      [&] { return cudaMemcpyAsync(&host, s.x, 4, cudaMemcpyDeviceToHost, s.a); },
  };
  for (const auto& call : unsupported) {
    checks::context = "call " + std::to_string(&call - unsupported);
    cudaGraphExec_t exec = nullptr;
    const auto work = [&] {
      CHECK(call() == cudaErrorStreamCaptureUnsupported);
      CHECK(launch(add_one, s.a, s.x, kCount) == cudaErrorStreamCaptureInvalidated);
    };
    CHECK(capture(s, work, &exec) == cudaErrorStreamCaptureInvalidated);
  }
  checks::context.clear();
  cudaGraphExec_t exec = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  const auto beside = [&] {  // what a thread may do that knows of the capture
    CHECK(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess);
    CHECK(mode == cudaStreamCaptureModeGlobal);
    CHECK(cudaHostAlloc(&block, 8, 0) == cudaSuccess);
    CHECK(cudaFreeHost(block) == cudaSuccess);
    CHECK(cudaStreamSynchronize(s.b) == cudaSuccess);
    CHECK(cudaEventQuery(s.done) == cudaSuccess);
    CHECK(launch(add_one, s.a, s.x, kCount) == cudaSuccess);
    CHECK(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess);
    CHECK(mode == cudaStreamCaptureModeRelaxed);
  };
  CHECK(capture(s, beside, &exec) == cudaSuccess);
  CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);
  for (const bool waits_for_all : {false, true}) {  // nobody may wait for what is only written down
    const auto wait = [&] {
      CHECK(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess);
      CHECK((waits_for_all ? cudaDeviceSynchronize() : cudaStreamSynchronize(s.a)) ==
            cudaErrorStreamCaptureUnsupported);
      CHECK(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess);
    };
    CHECK(capture(s, wait, &exec) == cudaErrorStreamCaptureInvalidated);
  }
  cudaStream_t blocking = nullptr;
  CHECK(cudaStreamCreateWithFlags(&blocking, cudaStreamDefault) == cudaSuccess);
  for (const bool waits_for_legacy : {false, true}) {
    const cudaError_t expected = waits_for_legacy ? cudaErrorStreamCaptureImplicit : cudaSuccess;
    const auto legacy = [&] {
      CHECK(cudaEventRecord(s.ready, s.a) == cudaSuccess);
      if (waits_for_legacy) CHECK(cudaStreamWaitEvent(blocking, s.ready) == cudaSuccess);
      CHECK(launch(add_one, nullptr, s.x, kCount) == expected);
      cudaStreamCaptureStatus status = cudaStreamCaptureStatusActive;
      CHECK(cudaStreamIsCapturing(nullptr, &status) == expected);
      CHECK(waits_for_legacy || status == cudaStreamCaptureStatusNone);
    };
    CHECK(capture(s, legacy, &exec) == (waits_for_legacy ? cudaErrorStreamCaptureInvalidated : cudaSuccess));
    CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);
  }
  CHECK(cudaStreamDestroy(blocking) == cudaSuccess);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(cudaEventRecord(s.done, s.b) == cudaSuccess);
  const auto outside = [&] { CHECK(cudaStreamWaitEvent(s.a, s.done) == cudaErrorStreamCaptureIsolation); };
  CHECK(capture(s, outside, &exec) == cudaErrorStreamCaptureInvalidated);
  const auto unjoined = [&] {
    CHECK(cudaEventRecord(s.ready, s.a) == cudaSuccess);
    CHECK(cudaStreamWaitEvent(s.b, s.ready) == cudaSuccess);
    CHECK(launch(add_one, s.b, s.x, kCount) == cudaSuccess);
  };
  CHECK(capture(s, unjoined, &exec) == cudaErrorStreamCaptureUnjoined);
  CHECK(launch(add_one, s.a, s.x, kCount) == cudaSuccess);  // all is as before
  CHECK(launch(add_one, s.b, s.y, kCount) == cudaSuccess);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(cudaEventSynchronize(s.ready) == cudaErrorCapturedEvent);
  CHECK(fine());
}

}  // namespace

int main() {
  emulation::collect_faults(true);
  arguments_are_checked();
  what_is_asked_for_is_counted();
  streams_wait_for_each_other();
  the_host_waits_too();
  a_fence_tells_the_host();
  memory_is_not_used_after_its_end();
  graphs_are_recorded_and_replayed();
  what_no_graph_can_hold_spoils_it();
  return checks::finish();
}
