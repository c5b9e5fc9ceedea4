// Compiler configuration: the only file of the core that looks at the compiler.
#ifndef BUCKET_MOO_CONFIG_HPP
#define BUCKET_MOO_CONFIG_HPP

/// BUCKET_MOO_HD marks a function that is compiled for the host and, by a CUDA compiler, for the device too. The
/// instructions of a kernel that one warp runs through once come from far away, so that their number counts:
/// BUCKET_MOO_CALLED marks a function that kernels call instead of having a copy of it at every call; pointers that it
/// is given go through Lanes::near(). BUCKET_MOO_UNROLL(n) says how many turns of the loop behind it kernels may have
/// side by side: 1 where there is but one turn anyway, as in most loops over lanes.
#if defined(__CUDACC__)
#define BUCKET_MOO_HD __host__ __device__
#define BUCKET_MOO_DEVICE __device__
#define BUCKET_MOO_HAS_WARPS 1
#define BUCKET_MOO_CALLED __noinline__
#define BUCKET_MOO_UNROLL(times) _Pragma(BUCKET_MOO_STRING(unroll times))
#else
#define BUCKET_MOO_HD
#define BUCKET_MOO_DEVICE
#define BUCKET_MOO_HAS_WARPS 0
#define BUCKET_MOO_CALLED
#define BUCKET_MOO_UNROLL(times)
#endif
#define BUCKET_MOO_STRING(text) #text

/// Marks a function that never stands by itself: files compiled for several instruction sets call it, and the linker
/// must not keep one set's copy for all.
#define BUCKET_MOO_ALWAYS_INLINE inline __attribute__((always_inline))

#endif  // BUCKET_MOO_CONFIG_HPP
