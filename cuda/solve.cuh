// Batched solve on the GPU: one warp a problem, the same source as on the host. Torch-free.
//
// None of these functions throws, synchronises or allocates.
#ifndef BUCKET_MOO_CUDA_SOLVE_CUH
#define BUCKET_MOO_CUDA_SOLVE_CUH

#include <cuda_runtime_api.h>

#include <bucket_moo/method.hpp>
#include <bucket_moo/objective_table.hpp>
#include <bucket_moo/random.hpp>
#include <bucket_moo/solution.hpp>
#include <cstddef>
#include <cstdint>

#include "kernels/rows.hpp"

namespace bucket_moo::cuda {

/// Problems that are solved side by side, independent of one another.
struct SolveBatch {
  Method method;                     ///< options; their pointers must be device pointers and apply to every problem
  RandomKey key;                     ///< problem b uses (seed, step, bucket + b)
  int batch = 0;                     ///< number of problems, >= 0
  int k = 0;                         ///< objectives, 1 <= k <= solve_limit()
  const double* gramians = nullptr;  ///< [batch, k, k] float64, device
  double* weights = nullptr;         ///< [batch, k] float64, device, out
  Solution* solutions = nullptr;     ///< [batch], device, out; nullptr: not wanted
  double* states = nullptr;          ///< [batch, state_size(method, k)], device, in and out; nullptr: all first steps
  const RandomKey* keys = nullptr;   ///< [batch], device, in the place of `key`; nullptr: that
};

/// Totals of a state, on the device.
struct DeviceCounters {
  std::int64_t step = 0;       ///< steps begun
  std::int64_t buckets = 0;    ///< buckets reduced
  std::int64_t nonfinite = 0;  ///< of those, how many fell back to the mean for a NaN or Inf
};

/// What is known of a bucket once it is solved, in device memory.
struct BucketResult {
  StepHeader* header = nullptr;  ///< that of the step
  Solution* solution = nullptr;
  double* gramian = nullptr;  ///< [K, K]
  double* weights = nullptr;  ///< [K]
};

/// Rows of a few elements, side by side in device memory, one a rank.
struct TailRows {
  const void* base = nullptr;  ///< row 0, aligned to its element size
  std::int64_t pitch = 0;      ///< bytes from one row to the next
  int size = 0;                ///< elements of a row; 0: there are none
  DType dtype = DType::float32;
};

/// What a bucket's Gramian is the sum of, in this order; each part may be missing. Packed: the lower triangle, entry
/// (i, j), j <= i, at i (i + 1) / 2 + j.
struct GramianParts {
  TailRows tail = {};                   ///< the Gramian of the objectives' gradients in it; see solve_takes_tail()
  const double* packed = nullptr;       ///< a packed Gramian, device
  const std::byte* messages = nullptr;  ///< [world], device, each beginning with a packed Gramian; 8-byte aligned
  std::int64_t pitch = 0;               ///< bytes from one message to the next, a multiple of 8
  int world = 0;                        ///< messages, which are added in their order
};

/// The problem of one bucket of a step, whose objectives only the device knows.
struct SolveStep {
  Method method;              ///< as in SolveBatch
  std::uint64_t seed = 0;     ///< with the step of the table and `bucket` the key of random choices
  std::uint64_t bucket = 0;   ///< index of the bucket in the step
  ObjectiveTable table = {};  ///< of the step, device
  int world = 0;              ///< W, ranks in the table
  int k_bound = 0;            ///< K is at most this, and this solve_limit()
  GramianParts gramian = {};  ///< of the bucket
  BucketResult result = {};   ///< device, out
  /// What becomes a copy of the result, device; null pointers: nothing does. It stays as it is if the step has an
  /// error, and if the Gramian has a NaN or Inf unless nothing is kept yet: then all of kept.header is zero.
  BucketResult kept = {};
  /// [W] of the combination, device, out; NaN where the step has an error. nullptr: they are not wanted.
  double* coefficients = nullptr;
  DeviceCounters* counters = nullptr;  ///< device, buckets and nonfinite are counted up; nullptr: they are not
  const int* slot = nullptr;           ///< [K] of the registry, device; nullptr for methods without a memory
  int capacity = 0;                    ///< of the registry
  double* state = nullptr;             ///< [state_size(method, capacity)], then [capacity] 1 for every name met; device
  /// Problems that are solved side by side, a block each. Of several, `gramian` is packed alone, and that and `result`
  /// are the first's; those of the others follow, with room for `k_bound` objectives each.
  int problems = 1;
  const std::uint64_t* key = nullptr;  ///< [problems], device, in the place of `bucket`; nullptr: that
  const int* count = nullptr;          ///< [problems / each], device: how many of each group there are; nullptr: all
  int each = 1;                        ///< problems of a group
  /// Where `coefficients` are not wanted: whether scale_to_mean() follows, unless the Gramian has a NaN or Inf.
  bool scales_to_mean = false;
  const double* importance = nullptr;  ///< for that; device
};

/// How many objectives a method can have on the current device: a problem is solved in a block's shared memory. Where a
/// block may have 163 kB (sm_80, 90, 100) these are kMaxObjectives.
/// \param k out
cudaError_t solve_limit(const Method& method, int* k);

/// Enqueues the solves of a batch.
/// \return cudaErrorInvalidValue for arguments out of range, else what the launch says. Can be captured in a graph.
cudaError_t launch_solve(const SolveBatch& batch, cudaStream_t stream);

/// Whether a solve of up to k_bound objectives can form the Gramian of a tail of `size` elements. For longer ones it
/// would take more time, being one block, than a launch of their own.
bool solve_takes_tail(int k_bound, std::int64_t size);

/// Enqueues the sum of a bucket's Gramian, the same bits on every GPU, its solve, and the coefficients of its
/// combination: coefficient[r] = weight[objective of r] * share[r].
/// Or several of them.
/// \return as launch_solve()
cudaError_t launch_solve(const SolveStep& step, cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_SOLVE_CUH
