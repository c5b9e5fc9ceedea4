// Finds accesses of a kernel's threads to the same memory that nothing orders, though they came out right this time.
//
// Kernels are compiled with -fsanitize=thread, and this stands in for that sanitizer's runtime: every access calls it.
// Ordered are the accesses of a thread; those of a warp before and after a __syncwarp; those of a block before and
// after a __syncthreads; those of different launches. Shuffles, votes and reductions over a warp order nothing.
// Atomic operations do not race with each other, and order nothing alone: what comes before a __threadfence of a thread
// whose atomic operation follows is ordered before what comes after a __threadfence behind another thread's operation
// on the same address.
// Exact for what ran, whatever the order in which it ran. Of the threads that read a place two are kept: enough to find
// a write that races with any, but not to list all races with it.
// A program that is linked with this ends with an error if races are left, see take_races(); after the first launch
// with one if BUCKET_MOO_STOP_AT_RACE is set.
#ifndef BUCKET_MOO_EMULATION_RACE_DETECTOR_HPP
#define BUCKET_MOO_EMULATION_RACE_DETECTOR_HPP

#include <cstdint>
#include <vector>

namespace bucket_moo::emulation {

enum class AccessKind : std::uint8_t { read, write, atomic };

struct RacingAccess {
  AccessKind kind;
  unsigned block;
  int thread;
  std::uintptr_t code;  ///< address behind the instruction
};

/// The first of all races between the same two instructions.
struct Race {
  const void* kernel;
  bool shared;  ///< whether in shared memory
  RacingAccess earlier, later;
};

/// The races found since the last call. They are not reported any more.
std::vector<Race> take_races();

}  // namespace bucket_moo::emulation

#endif  // BUCKET_MOO_EMULATION_RACE_DETECTOR_HPP
