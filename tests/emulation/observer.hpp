// What the emulation tells of the order in which it runs threads; without an observer nobody is told.
#ifndef BUCKET_MOO_EMULATION_OBSERVER_HPP
#define BUCKET_MOO_EMULATION_OBSERVER_HPP

#include <cstddef>

namespace bucket_moo::emulation {

/// Memory of the block that runs, or of one of its threads.
struct Region {
  const void* begin = nullptr;
  std::size_t bytes = 0;
};

/// Called while a grid runs, of one grid at a time. Blocks run one after another; of a block a warp runs until all of
/// its lanes wait for the others.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void grid_begins(const void* kernel, Region shared) = 0;
  virtual void block_begins(unsigned block) = 0;
  /// The thread runs from here on. \param stack its own
  virtual void thread_runs(int thread, Region stack) = 0;
  /// All lanes of the warp that ran have reached a __syncwarp.
  virtual void warp_synchronised() = 0;
  /// All threads of the block have reached a __syncthreads.
  virtual void block_synchronised() = 0;
  /// The running thread has reached a __threadfence.
  virtual void thread_fenced() = 0;
  virtual void grid_ends() = 0;
};

/// To be called before the first launch. \param observer must outlive the last one
void set_observer(Observer* observer);

}  // namespace bucket_moo::emulation

#endif  // BUCKET_MOO_EMULATION_OBSERVER_HPP
