// Runs CUDA kernels on the CPU, unchanged: a fibre for each thread of a block, blocks one after another; and a CUDA
// runtime that is as strict as the real one, and stricter.
//
// Shows: wrong results, barriers that not all threads reach, shared memory that is read before it is written (it starts
// as NaN) or written beyond its end, launches and copies a GPU would refuse, order of threads that matters, memory that
// is used while another stream may still use it, or by a host that has not waited (see memory.hpp), work that cannot be
// captured in a graph.
// Does not show: missing barriers whose threads run in a fortunate order, which race_detector.hpp does; speed.
#ifndef BUCKET_MOO_EMULATION_HPP
#define BUCKET_MOO_EMULATION_HPP

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace bucket_moo::emulation {

/// Multiprocessors of the emulated GPU, > 0; at first BUCKET_MOO_EMULATED_SMS of the environment, else 2.
void set_multiprocessors(int count);

/// Whether threads, warps and blocks run from the last to the first.
void set_reverse_order(bool reverse);

/// The largest pitch of a copy of rows; at first 2^31 - 1, as on a GPU.
void set_max_pitch(std::size_t bytes);

/// Launches so far, in this process.
long launches();

/// Whether a fault (see memory.hpp) is kept for take_faults(); else it aborts the program.
void collect_faults(bool collect);

/// What went wrong since the last call.
std::vector<std::string> take_faults();

/// Calls `look` whenever a kernel comes to __threadfence_system(); empty: nothing is called.
void on_system_fence(std::function<void()> look);

/// Questions so far about the device and about kernels on it, and changes of what kernels may have.
long questions();

}  // namespace bucket_moo::emulation

#endif  // BUCKET_MOO_EMULATION_HPP
