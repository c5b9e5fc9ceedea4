// Runs CUDA kernels on the CPU, unchanged: a fibre for each thread of a block, blocks one after another.
//
// Shows: wrong results, barriers that not all threads reach, shared memory that is read before it is written (it starts
// as NaN) or written beyond its end, launches a GPU would refuse, order of threads that matters.
// Does not show: races between blocks, missing memory ordering, speed.
#ifndef BUCKET_MOO_EMULATION_HPP
#define BUCKET_MOO_EMULATION_HPP

namespace bucket_moo::emulation {

/// Multiprocessors of the emulated GPU, > 0; at first BUCKET_MOO_EMULATED_SMS of the environment, else 2.
void set_multiprocessors(int count);

/// Whether threads, warps and blocks run from the last to the first.
void set_reverse_order(bool reverse);

/// Launches so far, in this process.
long launches();

}  // namespace bucket_moo::emulation

#endif  // BUCKET_MOO_EMULATION_HPP
