// Memory of the emulated device, and pinned memory of the host: who used which page last, on which stream, and whether
// that was waited for.
//
// Pages are closed (PROT_NONE) while nothing runs that may use them. What a copy uses is known; what a kernel uses
// shows by the page faults that it takes, and so does a host that touches what is not its own. A page is the smallest
// thing that is told apart, an allocation shares none.
#ifndef BUCKET_MOO_EMULATION_MEMORY_HPP
#define BUCKET_MOO_EMULATION_MEMORY_HPP

#include <cstddef>
#include <string>

#include "clock.hpp"
#include "streams.hpp"

namespace bucket_moo::emulation {

enum class Place { device, pinned };

/// A block of its own, full of NaN; nullptr where there is no memory. `stream`: whose work comes before the block's
/// first use, as with an allocator that reuses what is freed on a stream; nullptr: nobody's.
void* allocate(Place place, std::size_t bytes, const Stream* stream);

/// Lets go of a block. Its addresses are never used again, so that later uses show. `owner`: the stream that it was
/// allocated on, which may reuse it at once; what others still do with it is a fault, unless record_use() said so.
/// nullptr: nothing may still use it. \return whether there is such a block in that place
bool release(Place place, void* pointer, const Stream* owner);

/// Keeps a block until the work that `stream` holds when the block is released is done.
void record_use(const void* pointer, const Stream& stream);

/// What is known of a range of addresses.
enum class Known { no, device, pinned, beyond };  ///< beyond: it starts in a block and leaves it
Known look_up(Range range);

/// A task while it runs, under runtime_mutex(): opens the pages that it uses, checks them against the clock of its
/// stream and closes them at the end.
class RunningTask {
 public:
  RunningTask(const Task& task, const Stream& stream, Epoch epoch);
  ~RunningTask();
  RunningTask(const RunningTask&) = delete;
  RunningTask& operator=(const RunningTask&) = delete;
};

/// The running kernel's writes so far are visible to a host that does not wait for it, __threadfence_system().
void system_fence();

/// Something that may go wrong on a GPU. Prints it and aborts, unless faults are collected.
void fault(const std::string& what);

}  // namespace bucket_moo::emulation

#endif  // BUCKET_MOO_EMULATION_MEMORY_HPP
