// Compiler configuration: the only file of the core that looks at the compiler.
#ifndef BUCKET_MOO_CONFIG_HPP
#define BUCKET_MOO_CONFIG_HPP

/// Marks a function that is compiled for the host and, by a CUDA compiler, for the device too.
#if defined(__CUDACC__)
#define BUCKET_MOO_HD __host__ __device__
#define BUCKET_MOO_DEVICE __device__
#define BUCKET_MOO_HAS_WARPS 1
#else
#define BUCKET_MOO_HD
#define BUCKET_MOO_DEVICE
#define BUCKET_MOO_HAS_WARPS 0
#endif

/// Marks a function that never stands by itself: files compiled for several instruction sets call it, and the linker
/// must not keep one set's copy for all.
#define BUCKET_MOO_ALWAYS_INLINE inline __attribute__((always_inline))

#endif  // BUCKET_MOO_CONFIG_HPP
