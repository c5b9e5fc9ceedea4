// Streams and what runs on them. Work is done at once, in the order in which the host asks for it; what a GPU would be
// free to do in another order is known from vector clocks.
#ifndef BUCKET_MOO_EMULATION_STREAMS_HPP
#define BUCKET_MOO_EMULATION_STREAMS_HPP

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "clock.hpp"
#include "cuda_runtime_api.h"
#include "operations.hpp"

namespace bucket_moo::emulation {

struct Capture;

/// Bytes that a task is known to use.
struct Range {
  const void* begin;
  std::size_t bytes;
};

/// Work for a stream.
struct Task {
  const char* name;         ///< for messages
  long Operations::* kind;  ///< what it counts as
  std::vector<Range> reads = {};
  std::vector<Range> writes = {};
  std::function<cudaError_t()> run;  ///< owns what it needs: a graph runs it again
};

struct Stream {
  int id = 0;
  bool blocking = true;  ///< waits for the legacy stream, and is waited for by it
  Clock clock = {};
  std::shared_ptr<Capture> capture = {};
  std::size_t lane = 0;  ///< in the capture
};

/// Guards everything of the emulated runtime; held while a task runs.
std::recursive_mutex& runtime_mutex();

/// nullptr: no such stream.
Stream* find_stream(cudaStream_t handle);

/// What the host has waited for. Its threads count as one.
Clock& host_clock();

/// An id for a Stream that no handle stands for.
int new_stream_id();

/// Runs `task`, or records it where the stream is being captured.
cudaError_t enqueue(cudaStream_t handle, const Task& task);

/// Runs `task` on a stream that is not being captured.
cudaError_t execute(Stream& stream, const Task& task);

/// For calls that no graph can hold: while one is captured they are an error that invalidates the capture.
cudaError_t not_while_capturing();
/// The same for those that have nothing to do with what is captured, such as an allocation: a thread that says that it
/// knows what it does, cudaThreadExchangeStreamCaptureMode(), may make them.
cudaError_t not_beside_captures();

/// The host waits for everything.
void wait_for_device();

// Of capture.cpp:

/// nullptr: `stream` is not being captured.
cudaError_t record_task(Stream& stream, const Task& task);
struct CapturedEvent {
  std::shared_ptr<Capture> capture;
  std::size_t number = 0;
};
cudaError_t record_event(Stream& stream, CapturedEvent& event);
cudaError_t wait_for_captured(Stream& stream, const CapturedEvent& event);
/// Spoils the capture that `stream` is in. \return `error`
cudaError_t invalidate(Stream& stream, cudaError_t error);
/// Whether a stream that waits for the legacy stream is being captured: that one cannot be used then.
bool captures_blocking_stream();
/// Spoils every capture. \return whether there was one
bool invalidate_all(cudaError_t error);

}  // namespace bucket_moo::emulation

#endif  // BUCKET_MOO_EMULATION_STREAMS_HPP
