// Graphs: work that is recorded instead of done, and done when the graph is launched.
#include <algorithm>
#include <unordered_map>

#include "memory.hpp"
#include "streams.hpp"

namespace emulation = bucket_moo::emulation;

namespace bucket_moo::emulation {
namespace {

/// A step of one lane: work, or a meeting with another lane.
struct Item {
  enum class Kind { task, record, wait } kind;
  std::size_t lane;
  Task task = {};
  std::size_t event = 0;
};

}  // namespace

/// A lane stands for a stream.
struct Capture {
  cudaError_t error = cudaSuccess;
  bool is_over = false;
  std::vector<Stream*> streams;  ///< by lane; the first one is where the capture began
  std::vector<Clock> lanes;      ///< what each stream has waited for, in tasks of the lanes
  std::vector<Clock> events;
  std::vector<Item> items;
};

namespace {

std::vector<std::shared_ptr<Capture>>& active() {
  static auto* const instance = new std::vector<std::shared_ptr<Capture>>;
  return *instance;
}

void add_lane(Stream& stream, const std::shared_ptr<Capture>& capture) {
  stream.capture = capture;
  stream.lane = capture->streams.size();
  capture->streams.push_back(&stream);
  capture->lanes.emplace_back();
}

cudaError_t spoil(Capture& capture, cudaError_t error) {
  if (capture.error == cudaSuccess) capture.error = error;
  return error;
}

cudaError_t invalid_or_success(const Capture& capture) {
  return capture.error == cudaSuccess ? cudaSuccess : cudaErrorStreamCaptureInvalidated;
}

}  // namespace

cudaError_t record_task(Stream& stream, const Task& task) {
  Capture& capture = *stream.capture;
  if (capture.error != cudaSuccess) return cudaErrorStreamCaptureInvalidated;
  capture.lanes[stream.lane].tick(static_cast<int>(stream.lane));
  capture.items.push_back({Item::Kind::task, stream.lane, task});
  return cudaSuccess;
}

cudaError_t record_event(Stream& stream, CapturedEvent& event) {
  Capture& capture = *stream.capture;
  event = {stream.capture, capture.events.size()};
  capture.events.push_back(capture.lanes[stream.lane]);
  capture.items.push_back({.kind = Item::Kind::record, .lane = stream.lane, .event = event.number});
  return invalid_or_success(capture);
}

cudaError_t wait_for_captured(Stream& stream, const CapturedEvent& event) {
  Capture& capture = *event.capture;
  if (stream.capture && stream.capture != event.capture) {
    spoil(*stream.capture, cudaErrorStreamCaptureMerge);
    return spoil(capture, cudaErrorStreamCaptureMerge);
  }
  if (capture.is_over) return cudaErrorCapturedEvent;
  if (find_stream(nullptr) == &stream) return spoil(capture, cudaErrorStreamCaptureImplicit);
  if (!stream.capture) add_lane(stream, event.capture);
  capture.lanes[stream.lane].join(capture.events[event.number]);
  capture.items.push_back({.kind = Item::Kind::wait, .lane = stream.lane, .event = event.number});
  return invalid_or_success(capture);
}

cudaError_t invalidate(Stream& stream, cudaError_t error) { return spoil(*stream.capture, error); }

bool captures_blocking_stream() {
  return std::ranges::any_of(active(), [](const std::shared_ptr<Capture>& capture) {
    return std::ranges::any_of(capture->streams, &Stream::blocking);
  });
}

bool invalidate_all(cudaError_t error) {
  for (const std::shared_ptr<Capture>& capture : active()) spoil(*capture, error);
  return !active().empty();
}

}  // namespace bucket_moo::emulation

using emulation::active;
using emulation::Capture;
using emulation::find_stream;
using emulation::runtime_mutex;

struct CUgraph_st {
  std::vector<emulation::Item> items;
  std::size_t lanes;
  std::size_t events;
};

struct CUgraphExec_st {
  CUgraph_st graph;
  std::vector<emulation::Stream> lanes;
};

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode) {
  const std::lock_guard lock(runtime_mutex());
  emulation::Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream == find_stream(nullptr)) return cudaErrorStreamCaptureUnsupported;
  if (stream->capture) return cudaErrorIllegalState;
  active().push_back(std::make_shared<Capture>());
  emulation::add_lane(*stream, active().back());
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  const std::lock_guard lock(runtime_mutex());
  emulation::Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (graph == nullptr) return cudaErrorInvalidValue;
  if (!stream->capture) return cudaErrorIllegalState;
  const std::shared_ptr<Capture> capture = stream->capture;
  if (stream->lane != 0) return emulation::spoil(*capture, cudaErrorStreamCaptureUnmatched);
  std::erase(active(), capture);
  capture->is_over = true;
  for (emulation::Stream* const captured : capture->streams) captured->capture.reset();
  *graph = nullptr;
  if (capture->error != cudaSuccess) return cudaErrorStreamCaptureInvalidated;
  for (std::size_t lane = 0; lane < capture->lanes.size(); ++lane) {
    if (!capture->lanes[0].has(capture->lanes[lane].now(static_cast<int>(lane)))) return cudaErrorStreamCaptureUnjoined;
  }
  *graph = new CUgraph_st{std::move(capture->items), capture->lanes.size(), capture->events.size()};
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  const std::lock_guard lock(runtime_mutex());
  const emulation::Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (status == nullptr) return cudaErrorInvalidValue;
  // Of the legacy stream CUDA does not say while a stream that waits for it is captured.
  if (stream == find_stream(nullptr) && emulation::captures_blocking_stream()) return cudaErrorStreamCaptureImplicit;
  *status = !stream->capture                        ? cudaStreamCaptureStatusNone
            : stream->capture->error == cudaSuccess ? cudaStreamCaptureStatusActive
                                                    : cudaStreamCaptureStatusInvalidated;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (exec == nullptr || graph == nullptr) return cudaErrorInvalidValue;
  const std::lock_guard lock(runtime_mutex());
  *exec = new CUgraphExec_st{*graph, std::vector<emulation::Stream>(graph->lanes)};
  for (emulation::Stream& lane : (*exec)->lanes) lane.id = emulation::new_stream_id();
  for (emulation::Stream& lane : (*exec)->lanes) lane.blocking = false;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle) {
  if (exec == nullptr) return cudaErrorInvalidValue;
  const std::lock_guard lock(runtime_mutex());
  emulation::Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream->capture) return emulation::invalidate(*stream, cudaErrorStreamCaptureUnsupported);
  emulation::count(&emulation::Operations::graph_launches);
  const emulation::Task nothing{.name = "graph", .kind = nullptr, .run = [] { return cudaSuccess; }};
  emulation::execute(*stream, nothing);
  for (emulation::Stream& lane : exec->lanes) lane.clock.join(stream->clock);
  std::vector<emulation::Clock> events(exec->graph.events);
  for (const emulation::Item& item : exec->graph.items) {
    emulation::Stream& lane = exec->lanes[item.lane];
    switch (item.kind) {
      case emulation::Item::Kind::task:
        if (const cudaError_t status = emulation::execute(lane, item.task); status != cudaSuccess) return status;
        break;
      case emulation::Item::Kind::record:
        events[item.event] = lane.clock;
        break;
      case emulation::Item::Kind::wait:
        lane.clock.join(events[item.event]);
        break;
    }
  }
  for (const emulation::Stream& lane : exec->lanes) stream->clock.join(lane.clock);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
