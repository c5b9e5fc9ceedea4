/* The C interface of bucket_moo: from gradients to a Gramian, from that to weights, the combination, and the collective
 * over a network of the caller's. C99; also for C++ and for any language that calls C.
 *
 * Every function that can fail returns an int: BUCKET_MOO_OK (0), or why it failed, as enum bucket_moo_error;
 * bucket_moo_last_error() then has a sentence. No C++ exception leaves a function, and none keeps a pointer to what it
 * was given, but where it is said.
 *
 * Structs begin with struct_size, which the caller sets to sizeof(the struct): the library reads and writes no more
 * than that, so a program goes on working with later libraries of the same ABI version, whose structs may have grown
 * at their ends. Fill the rest with zeros, which is the default of every field:
 * `struct bucket_moo_call call = {.struct_size = sizeof call};`.
 *
 * Threads: any number may call at a time, but one at a time for each collective. Memory is plain memory of the host.
 */
#ifndef BUCKET_MOO_H
#define BUCKET_MOO_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define BUCKET_MOO_API __attribute__((visibility("default")))
#else
#define BUCKET_MOO_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* --- versions ---------------------------------------------------------------------------------------------------- */

/* Of the interface below. Another number means that programs have to be compiled again, and may have to be changed. */
#define BUCKET_MOO_ABI_VERSION 1

/* The BUCKET_MOO_ABI_VERSION of the library that was loaded. Compare it with that of the header. */
BUCKET_MOO_API int bucket_moo_abi_version(void);

/* The release of the library, "0.1.0" say. */
BUCKET_MOO_API const char* bucket_moo_version(void);

/* --- errors ------------------------------------------------------------------------------------------------------ */

enum bucket_moo_error {
  BUCKET_MOO_OK = 0,
  /* An argument is wrong; nothing was done. Of a reduction other ranks hear, and get BUCKET_MOO_DISAGREEMENT. */
  BUCKET_MOO_INVALID_ARGUMENT = 1,
  /* The ranks do not make the same call or were not made alike. All of them get this from the same call, and may go on
   * with another; the data is as it was. */
  BUCKET_MOO_DISAGREEMENT = 2,
  /* A function of the transport returned another number than 0, or what came over it is no message of this version of
   * the library. The collective is spent: later calls fail likewise. */
  BUCKET_MOO_TRANSPORT_FAILED = 3,
  /* There is no memory left. A collective that it happens in is spent. */
  BUCKET_MOO_OUT_OF_MEMORY = 4,
  /* Anything else, which is an error of the library's. A collective that it happens in is spent. */
  BUCKET_MOO_INTERNAL_ERROR = 5
};

/* What the last call of this thread that failed has to say, in English, without an end of line; "" if none has.
 * Owned by the library, and good until the thread's next call that fails. */
BUCKET_MOO_API const char* bucket_moo_last_error(void);

/* --- gradients --------------------------------------------------------------------------------------------------- */

/* The type of a gradient's elements. */
enum bucket_moo_dtype {
  BUCKET_MOO_FLOAT32 = 0,
  BUCKET_MOO_BFLOAT16 = 1, /* the upper half of a float32 */
  BUCKET_MOO_FLOAT16 = 2,  /* IEEE binary16 */
  BUCKET_MOO_FLOAT64 = 3
};

/* The most objectives: K is from 1 to this. */
BUCKET_MOO_API int bucket_moo_max_objectives(void);

/* The inner products of K gradients.
 *   rows     [K] pointers to the gradients, each n elements one after another, which may lie anywhere
 *   k        K
 *   n        elements of each, >= 0
 *   dtype    of all of them, as enum bucket_moo_dtype
 *   gramian  [K, K], out: entry [i * K + j] is <row i, row j>. Exactly symmetric; float32 sums are short and go on in
 *            float64, see kernels/gramian.hpp */
BUCKET_MOO_API int bucket_moo_gramian(const void* const* rows, int k, int64_t n, int dtype, double* gramian);

/* The weighted sum of K gradients: out = weights[0] * row 0 + weights[1] * row 1 + ...
 *   rows, k, n, dtype  as above
 *   weights            [K]; a row of weight 0 is not read
 *   out                [n] of the rows' dtype, rounded once. May be one of the rows; must not overlap one in part */
BUCKET_MOO_API int bucket_moo_combine(const void* const* rows, int k, int64_t n, int dtype, const double* weights,
                                      void* out);

/* --- methods ----------------------------------------------------------------------------------------------------- */

/* How many methods there are, and the name of number 0 <= index < that, like "mgda"; NULL for another index. */
BUCKET_MOO_API int bucket_moo_method_count(void);
BUCKET_MOO_API const char* bucket_moo_method_name(int index);

/* A method with its options. What each takes is in docs/methods.md: its parameters are those of the class of that name
 * in Python, and what is left 0 has the default there. What a method has no use for must be left 0. */
struct bucket_moo_method_options {
  size_t struct_size;         /* sizeof(struct bucket_moo_method_options) */
  const char* name;           /* one of bucket_moo_method_name() */
  const double* numbers;      /* its parameters that are numbers, in the order there; flags are 0 or 1 */
  size_t number_count;        /* of them: all or 0. cagrad has 2: c, rescale. nashmtl's max_norm: 0 is no bound */
  const char* mode;           /* its parameter that is a word: "l2" for mgda's normalize. NULL or "": the default */
  const double* preference;   /* its preference (mean: its weights), a number >= 0 for each objective */
  size_t preference_count;    /* K or 0 */
  const int64_t* permutation; /* its permutation, K rows of K, one after another, each of 0, ..., K - 1 */
  size_t permutation_count;   /* K * K or 0 */
  double smoothing;           /* share of the past in weights that are averaged over steps, 0 <= it < 1; 0: none */
  double length;              /* of the update: 0 as the method has it, -1 that of the mean, > 0 this length */
};

/* A method that was checked. */
struct bucket_moo_method;

/* Makes a method, which is to be given to bucket_moo_method_destroy(). The options are copied.
 *   options  which
 *   method   out; untouched if the call fails */
BUCKET_MOO_API int bucket_moo_method_create(const struct bucket_moo_method_options* options,
                                            struct bucket_moo_method** method);

/* Frees a method; NULL is fine. Collectives that were made with it go on. */
BUCKET_MOO_API void bucket_moo_method_destroy(struct bucket_moo_method* method);

/* Numbers that the method carries from step to step for K objectives; 0 for most, without smoothing.
 *   size  out */
BUCKET_MOO_API int bucket_moo_state_size(const struct bucket_moo_method* method, int k, size_t* size);

/* --- the solve --------------------------------------------------------------------------------------------------- */

/* How a solve ended. The weights are usable in every case. */
enum bucket_moo_solve_status {
  BUCKET_MOO_SOLVED = 0,
  BUCKET_MOO_NONFINITE = 1,     /* the Gramian has a NaN or an Inf: the weights are those of the plain mean */
  BUCKET_MOO_INACTIVE = 2,      /* every gradient is zero: so are the weights */
  BUCKET_MOO_NOT_CONVERGED = 3, /* the residual is above the method's tolerance: the weights are the best found */
  BUCKET_MOO_FALLBACK = 4       /* what the method asks for does not exist here: see the method */
};

/* What a solve may use beside the Gramian. */
struct bucket_moo_solve_options {
  size_t struct_size; /* sizeof(struct bucket_moo_solve_options) */
  uint64_t seed;      /* seed, step and bucket are all that the random order of pcgrad and gradvac depends on */
  uint64_t step;
  uint64_t bucket;
  double* state;     /* what is carried from step to step, in and out, 0 at first; NULL: every step is a first one */
  size_t state_size; /* of `state`: bucket_moo_state_size() */
};

/* What a solve says beside the weights. */
struct bucket_moo_solution {
  size_t struct_size; /* sizeof(struct bucket_moo_solution), set by the caller; the rest is written */
  int32_t status;     /* as enum bucket_moo_solve_status */
  int32_t iterations; /* 0 for direct methods */
  int32_t active;     /* objectives with a gradient that is not zero */
  int32_t reserved;   /* 0 */
  double residual;    /* the method's relative certificate; 0 for direct methods */
};

/* From a Gramian to weights.
 *   method    of bucket_moo_method_create()
 *   k         K; a preference or a permutation must have been for as many
 *   gramian   [K, K]
 *   options   NULL: seed, step and bucket 0, no state
 *   weights   [K], out: the update is the sum of weights[i] * gradient i
 *   solution  out; may be NULL */
BUCKET_MOO_API int bucket_moo_solve(const struct bucket_moo_method* method, int k, const double* gramian,
                                    const struct bucket_moo_solve_options* options, double* weights,
                                    struct bucket_moo_solution* solution);

/* --- the collective ---------------------------------------------------------------------------------------------- */

/* A network between `size` ranks. The functions are called from the thread that reduces, one at a time, alike on every
 * rank and in the same order; they return when they are done: 0, or another number if the network has failed. */
struct bucket_moo_transport {
  size_t struct_size; /* sizeof(struct bucket_moo_transport) */
  void* context;      /* handed to the functions */
  int32_t rank;       /* this one, 0 <= rank < size */
  int32_t size;       /* >= 1 */
  /* Sends `bytes` bytes at input + p * pitch to every other rank p, and receives what rank p sends in rows[p]. Nothing
   * is to be done for this rank itself: rows[rank] must not be touched. */
  int (*all_to_all)(void* context, const void* input, size_t pitch, size_t bytes, void* const* rows);
  /* Fills block p, `bytes` bytes at blocks + p * pitch, with that of rank p; this rank's own is there. */
  int (*all_gather)(void* context, void* blocks, size_t pitch, size_t bytes);
};

/* What a collective is made with. All ranks need the same. */
struct bucket_moo_collective_options {
  size_t struct_size;   /* sizeof(struct bucket_moo_collective_options) */
  uint64_t seed;        /* of the random order of pcgrad and gradvac, and of sketches */
  int64_t tile_limit;   /* bytes of other ranks' data that are held at a time; larger buckets go in pieces, exchanged
                           twice. 0: no limit */
  int64_t sketch_width; /* columns of a sketched Gramian, a power of two from 64 to 2^28, for buckets of more than twice
                           as many elements. 0: the exact Gramian */
};

/* A collective over the ranks of a transport. */
struct bucket_moo_collective;

/* Makes a collective, which is to be given to bucket_moo_collective_destroy(). Nothing is sent yet.
 *   transport   copied; its context and functions are used until the collective is destroyed. NULL: a single rank
 *   method      copied
 *   options     NULL: seed 0, no limit, the exact Gramian
 *   collective  out; untouched if the call fails */
BUCKET_MOO_API int bucket_moo_collective_create(const struct bucket_moo_transport* transport,
                                                const struct bucket_moo_method* method,
                                                const struct bucket_moo_collective_options* options,
                                                struct bucket_moo_collective** collective);

/* Frees a collective, with all that bucket_moo_reduction points to; NULL is fine. */
BUCKET_MOO_API void bucket_moo_collective_destroy(struct bucket_moo_collective* collective);

/* What a rank brings to a reduction. */
struct bucket_moo_call {
  size_t struct_size;    /* sizeof(struct bucket_moo_call) */
  const char* objective; /* what this rank's gradient is of, 1 to 63 bytes; ranks of one name share an objective.
                            NULL: the rank's number, so that every rank has its own */
  double weight;         /* of this rank in the mean of its objective's ranks, finite and > 0; 0, the default: 1 */
  int32_t is_left_out;   /* 1: what is at `data` does not count; the rank gets the result like the others. Else 0 */
  int32_t reserved;      /* 0 */
  int64_t step;          /* the number of the optimizer step, the same on every rank */
  uint64_t bucket;       /* which bucket this is, the same on every rank and in every step: gradvac and smoothing
                            remember by it */
};

/* What was solved for one bucket, the same bits on every rank. */
struct bucket_moo_reduction {
  size_t struct_size;           /* sizeof(struct bucket_moo_reduction), set by the caller; the rest is written */
  int32_t objectives;           /* K */
  int32_t status;               /* as enum bucket_moo_solve_status */
  int32_t iterations;           /* as in bucket_moo_solution */
  int32_t active;               /* likewise */
  double residual;              /* likewise */
  const double* weights;        /* [K]; this and what follows is good until the collective's next call */
  const double* gramian;        /* [K, K] inner products of the objectives' gradients in this bucket */
  const char* const* objective; /* [K] names, in the order of the lowest rank that has each */
};

/* Replaces the n elements at `data` by the sum over the objectives of weight * gradient, the same bits on every rank:
 * in the place of an all-reduce with mean. An objective's gradient is the weighted mean of its ranks'. Before anything
 * is sent of the data the ranks compare their calls, 128 bytes a rank.
 *   collective  whose ranks all make this call, in the same order
 *   call        what this rank brings; NULL: as one of zeros
 *   data        [n], in and out
 *   n           >= 0
 *   dtype       as enum bucket_moo_dtype
 *   reduction   out; may be NULL
 * What gradvac and smoothing remember of a bucket is kept as long as its objectives are the same. */
BUCKET_MOO_API int bucket_moo_all_reduce(struct bucket_moo_collective* collective, const struct bucket_moo_call* call,
                                         void* data, int64_t n, int dtype, struct bucket_moo_reduction* reduction);

/* The same in the place of a reduce-scatter with mean: of that sum, this rank's shard.
 *   output  [shard], out. May be this rank's shard of `input`, and must not overlap it otherwise
 *   input   [size * shard], a shard for each rank, one after another; only read
 *   shard   elements of a shard, >= 0 */
BUCKET_MOO_API int bucket_moo_reduce_scatter(struct bucket_moo_collective* collective,
                                             const struct bucket_moo_call* call, void* output, const void* input,
                                             int64_t shard, int dtype, struct bucket_moo_reduction* reduction);

#ifdef __cplusplus
}
#endif

#endif /* BUCKET_MOO_H */
