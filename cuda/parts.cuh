// What the collective does on the device with buckets whose parts have weights of their own. Torch-free; none of these
// functions throws, synchronises or allocates.
#ifndef BUCKET_MOO_CUDA_PARTS_CUH
#define BUCKET_MOO_CUDA_PARTS_CUH

#include <cuda_runtime_api.h>

#include <bucket_moo/objective_table.hpp>
#include <bucket_moo/pass_table.hpp>
#include <cstddef>
#include <cstdint>

#include "rows.cuh"
#include "solve.cuh"

namespace bucket_moo::cuda {

/// Elements [begin, begin + size) of rows, which a block takes: of one part of the bucket or, `part` < 0, of none.
struct PartPiece {
  std::int64_t begin = 0;
  std::int32_t size = 0;
  std::int32_t part = 0;
};

/// The pieces of rows, in device memory.
struct PartPieces {
  const PartPiece* all = nullptr;  ///< [first[parts] and those of no part] in the order of their parts
  const int* first = nullptr;      ///< [parts + 1] the first piece of each part
  int count = 0;                   ///< of all pieces
  int in_parts = 0;                ///< first[parts]
  int parts = 0;                   ///< of the bucket, wherever they lie
};

/// Packed Gramians of the parts of a bucket, in device memory.
struct PartGramians {
  double* packed = nullptr;  ///< [parts, stride]; entry (i, j), j <= i, at i (i + 1) / 2 + j
  std::int64_t stride = 0;   ///< at least packed_size(K)
};

/// Bytes of workspace for the Gramians of so many pieces, of up to k objectives.
std::size_t part_workspace_size(int pieces, int k);

/// Enqueues the Gramians of the parts, as far as they lie in these rows. Nothing is written if the table has an error.
/// Accuracy: launch_gramian()'s. Bits: they depend on the values and on the pieces alone.
/// \param rows      of float32 or float64
/// \param table     the objectives; a row is one of one objective at most
/// \param workspace part_workspace_size() bytes, device, 16-byte aligned; in use until the kernels ran
/// \param out       of all parts: zeros where a part is not in these rows
/// \return cudaErrorInvalidValue for arguments out of range, else what the launch says
cudaError_t launch_part_gramians(const DeviceRows& rows, const ObjectiveTable& table, const PartPieces& pieces,
                                 void* workspace, const PartGramians& out, cudaStream_t stream);

/// Enqueues out = `own` (a null pointer: nothing) + the messages', in their order, for every part.
/// \param left_out [parts], device: other than 0 where a part's Gramian is 0 instead; nullptr: nowhere
/// \param messages [world] of `parts` packed Gramians, `stride` apart as those of `out`; device
/// \param pitch    bytes from one message to the next, a multiple of 8
cudaError_t launch_sum_part_gramians(const StepHeader* header, int parts, int k_bound, const double* own,
                                     const std::byte* left_out, const std::byte* messages, std::int64_t pitch,
                                     int world, const PartGramians& out, cudaStream_t stream);

/// Which weights a part has, in device memory.
struct PartPlace {
  const double* weights = nullptr;  ///< [K]
  const Solution* solution = nullptr;
  std::int64_t problem = 0;  ///< its number among the problems
};

/// Parts of a bucket by the groups that they belong to, in device memory.
struct GroupedParts {
  int groups = 0;
  const int* group = nullptr;           ///< [groups] their numbers among the problems'
  const std::uint64_t* hash = nullptr;  ///< [groups] of their names; nullptr: `one_hash`
  const int* begin = nullptr;           ///< [groups + 1] the first of each group's parts
  const int* part = nullptr;            ///< the parts, in ascending order in each group
  std::uint64_t one_hash = 0;
  bool names_in_key = true;  ///< whether names of objectives count in the key of random choices
};

/// Enqueues ProblemSet::add() for the parts of a bucket: each joins the problem of its group and support, to whose
/// Gramian its own is added. Problems that are not of step `now` yet begin anew.
/// \param sums     of the step, whose objectives the Gramians are of
/// \param support  scratch, [parts], device
/// \param places   [parts], device, out; of the parts in `parts` alone
/// \param now      a number of the step; one that was used for another step of the same problems must not come again
cudaError_t launch_place_parts(const StepSums& sums, const PartGramians& gramians, const GroupedParts& parts,
                               const PartProblems& problems, bool by_support, std::int64_t now, std::uint64_t* support,
                               PartPlace* places, cudaStream_t stream);

/// Enqueues coefficient[part, k] = weights of the part's problem[k] * share[k], and counts the bucket.
/// \param table        of the bucket's sums: row k is objective k, or none
/// \param rows         of the sums, at least K
/// \param coefficients [parts, rows], device, out; NaN where the step has an error
/// \param counters     nullptr: it is not counted
cudaError_t launch_part_coefficients(const ObjectiveTable& table, int rows, int parts, const PartPlace* places,
                                     DeviceCounters* counters, double* coefficients, cudaStream_t stream);

/// Enqueues launch_combine() with other coefficients for every part. What is in no part becomes 0.
/// \param rows         of float32 or float64, at most kMaxObjectives
/// \param coefficients [parts, rows.count], device
/// \param out          [rows.size] of out_dtype, device, which must not overlap a row
cudaError_t launch_combine_parts(const DeviceRows& rows, const PartPieces& pieces, const double* coefficients,
                                 void* out, DType out_dtype, cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_PARTS_CUH
