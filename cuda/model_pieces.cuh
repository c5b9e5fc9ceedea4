// What ranks that hold other pieces of a model tell each other on the device. Torch-free; none of these functions
// throws, synchronises or allocates.
#ifndef BUCKET_MOO_CUDA_MODEL_PIECES_CUH
#define BUCKET_MOO_CUDA_MODEL_PIECES_CUH

#include <cuda_runtime_api.h>

#include <bucket_moo/objective_table.hpp>
#include <bucket_moo/pass_table.hpp>
#include <cstddef>
#include <cstdint>

#include "step.cuh"

namespace bucket_moo::cuda {

/// What the message of a piece begins with, before its Gramians.
struct PieceSaid {
  std::uint64_t number = 0;  ///< of its bucket and step; 0: the step has an error there
  std::uint64_t unused = 0;  ///< so that what follows is 16-byte aligned
};

/// Enqueues what this piece says: a number for `bucket`, the step's number, and its objectives with the weights of
/// their rows, in their order.
/// \param said  device, out
cudaError_t launch_write_piece(const StepSums& sums, std::uint64_t bucket, PieceSaid* said, cudaStream_t stream);

/// Enqueues the comparison: where pieces say different things the step has the error StepError::other_piece from now
/// on, of the first that does not say what this one says.
/// \param messages  [count], each beginning with a PieceSaid; device
/// \param pitch     bytes from one message to the next
/// \param own       this piece
/// \param header    of the step, device, in and out
/// \param table     the header of a table that was made of it, device, in and out
cudaError_t launch_check_pieces(const std::byte* messages, std::int64_t pitch, int count, int own, StepHeader* header,
                                StepHeader* table, const FailureReport& report, cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_MODEL_PIECES_CUH
