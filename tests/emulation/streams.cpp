#include "streams.hpp"

#include <unordered_map>
#include <utility>

#include "memory.hpp"

namespace emulation = bucket_moo::emulation;
using emulation::count;
using emulation::Operations;

struct CUevent_st {
  bool recorded = false;
  emulation::Clock clock;
  emulation::CapturedEvent captured;
};

namespace bucket_moo::emulation {
namespace {

/// Of the thread.
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

struct Streams {
  std::recursive_mutex mutex;
  std::unordered_map<cudaStream_t, std::unique_ptr<Stream>> streams;
  std::unordered_map<cudaEvent_t, std::unique_ptr<CUevent_st>> events;
  Stream legacy;
  Clock host;
  int last_id = 0;
};

Streams& all() {
  static Streams* const instance = new Streams;  // never destroyed: streams may be used while the process ends
  return *instance;
}

CUevent_st* find_event(cudaEvent_t handle) {
  const auto found = all().events.find(handle);
  return found == all().events.end() ? nullptr : found->second.get();
}

/// Orders the legacy stream and those that it waits for.
void follow_legacy(Stream& stream) {
  Streams& s = all();
  if (&stream == &s.legacy) {
    for (const auto& [handle, other] : s.streams) {
      if (other->blocking) stream.clock.join(other->clock);
    }
  } else if (stream.blocking) {
    stream.clock.join(s.legacy.clock);
  }
}

/// Work that is asked for now comes after what the host has waited for.
Epoch next(Stream& stream) {
  stream.clock.join(all().host);
  follow_legacy(stream);
  return stream.clock.tick(stream.id);
}

}  // namespace

std::recursive_mutex& runtime_mutex() { return all().mutex; }

Stream* find_stream(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy) return &all().legacy;
  const auto found = all().streams.find(handle);
  return found == all().streams.end() ? nullptr : found->second.get();
}

Clock& host_clock() { return all().host; }

int new_stream_id() { return ++all().last_id; }

void wait_for_device() {
  Streams& s = all();
  s.host.join(s.legacy.clock);
  for (const auto& [handle, stream] : s.streams) s.host.join(stream->clock);
}

cudaError_t execute(Stream& stream, const Task& task) {
  const Epoch epoch = next(stream);
  const RunningTask running(task, stream, epoch);
  return task.run();
}

cudaError_t enqueue(cudaStream_t handle, const Task& task) {
  const std::lock_guard lock(all().mutex);
  Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream == &all().legacy) {
    if (captures_blocking_stream()) {
      invalidate_all(cudaErrorStreamCaptureImplicit);
      return cudaErrorStreamCaptureImplicit;
    }
    count(&Operations::on_legacy_stream);
  }
  count(task.kind);
  return stream->capture ? record_task(*stream, task) : execute(*stream, task);
}

cudaError_t not_while_capturing() {
  return invalidate_all(cudaErrorStreamCaptureUnsupported) ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

cudaError_t not_beside_captures() {
  return capture_mode == cudaStreamCaptureModeRelaxed ? cudaSuccess : not_while_capturing();
}

}  // namespace bucket_moo::emulation

using emulation::all;
using emulation::find_event;
using emulation::find_stream;

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  if (stream == nullptr || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
  const std::lock_guard lock(all().mutex);
  auto made = std::make_unique<emulation::Stream>();
  made->id = emulation::new_stream_id();
  made->blocking = flags == cudaStreamDefault;
  *stream = reinterpret_cast<cudaStream_t>(made.get());
  all().streams[*stream] = std::move(made);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  const std::lock_guard lock(all().mutex);
  const auto found = all().streams.find(handle);
  if (found == all().streams.end()) return cudaErrorInvalidResourceHandle;
  if (found->second->capture) emulation::invalidate(*found->second, cudaErrorStreamCaptureInvalidated);
  // Nobody waits for its work any more, and what it uses is still in use: its id stays known to memory.
  all().streams.erase(found);
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  if (mode == nullptr || (*mode != cudaStreamCaptureModeGlobal && *mode != cudaStreamCaptureModeRelaxed)) {
    return cudaErrorInvalidValue;
  }
  std::swap(emulation::capture_mode, *mode);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  const std::lock_guard lock(all().mutex);
  emulation::Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  count(&Operations::synchronisations);
  const cudaError_t status = stream->capture ? emulation::not_while_capturing() : emulation::not_beside_captures();
  if (status != cudaSuccess) return status;
  emulation::follow_legacy(*stream);
  all().host.join(stream->clock);
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t handle) { return cudaStreamSynchronize(handle); }

cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard lock(all().mutex);
  count(&Operations::synchronisations);
  const cudaError_t status = emulation::not_while_capturing();
  if (status == cudaSuccess) emulation::wait_for_device();
  return status;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  if (event == nullptr || (flags & ~(cudaEventBlockingSync | cudaEventDisableTiming)) != 0)
    return cudaErrorInvalidValue;
  const std::lock_guard lock(all().mutex);
  auto made = std::make_unique<CUevent_st>();
  *event = made.get();
  all().events[*event] = std::move(made);
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  const std::lock_guard lock(all().mutex);
  return all().events.erase(handle) == 1 ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t on) {
  const std::lock_guard lock(all().mutex);
  CUevent_st* const event = find_event(handle);
  emulation::Stream* const stream = find_stream(on);
  if (event == nullptr || stream == nullptr) return cudaErrorInvalidResourceHandle;
  count(&Operations::event_records);
  event->captured = {};
  if (stream->capture) return emulation::record_event(*stream, event->captured);
  event->recorded = true;
  stream->clock.join(all().host);
  emulation::follow_legacy(*stream);
  event->clock = stream->clock;
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t waiting, cudaEvent_t handle, unsigned flags) {
  const std::lock_guard lock(all().mutex);
  CUevent_st* const event = find_event(handle);
  emulation::Stream* const stream = find_stream(waiting);
  if (event == nullptr || stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (flags != 0) return cudaErrorInvalidValue;
  count(&Operations::event_waits);
  if (event->captured.capture) return emulation::wait_for_captured(*stream, event->captured);
  if (!event->recorded) return cudaSuccess;
  // A graph cannot wait for what is outside of it.
  if (stream->capture) return emulation::invalidate(*stream, cudaErrorStreamCaptureIsolation);
  stream->clock.join(event->clock);
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  const std::lock_guard lock(all().mutex);
  CUevent_st* const event = find_event(handle);
  if (event == nullptr) return cudaErrorInvalidResourceHandle;
  count(&Operations::synchronisations);
  const cudaError_t status = emulation::not_beside_captures();
  if (status != cudaSuccess) return status;
  if (event->captured.capture) return cudaErrorCapturedEvent;
  if (event->recorded) all().host.join(event->clock);
  return cudaSuccess;
}

/// Work is done when it is asked for: who looks sees that, and has waited.
cudaError_t cudaEventQuery(cudaEvent_t handle) { return cudaEventSynchronize(handle); }
