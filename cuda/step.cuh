// What the collective does on the device once a step. Torch-free; none of these
// functions throws, synchronises or allocates, and all can be captured in a graph.
#ifndef BUCKET_MOO_CUDA_STEP_CUH
#define BUCKET_MOO_CUDA_STEP_CUH

#include <cuda_runtime_api.h>

#include <bucket_moo/objective_table.hpp>
#include <cstdint>

namespace bucket_moo::cuda {

/// Enqueues: counter += 1; slot = own, with the counter as its step. The device counts, so that a replayed graph counts
/// on.
/// \param counter int64, device
/// \param slot    this rank's place among the records, device
cudaError_t launch_write_record(const StepRecord& own, std::int64_t* counter, StepRecord* slot, cudaStream_t stream);

/// What the host is told of the first step that had an error.
struct StepNotice {
  StepHeader header;       ///< error == none: there was none yet
  std::int64_t begun = 0;  ///< of launch_make_table(): the host's own number of that step
};

/// Enqueues make_objective_table(), and after it require_same_objectives() if `first` has names and assign_slots() if
/// `registry` has.
/// \param records [world], device
/// \param table, first, registry  all pointers on the device
/// \param tickets [kGramianTickets] of the step's Gramians, device; set to zero
/// \param failed  header of the first step that had an error, device; error == none: there was none yet
/// \param told    the same in host memory that the device can write, for a host that waits for nothing: whoever loads
///                an `error` from it, with acquire semantics, finds the rest there too. Written for that step alone
/// \param begun   steps that the host has begun, this one included. A replayed graph repeats that of its capture
cudaError_t launch_make_table(const StepRecord* records, int world, const StepLimits& limits,
                              const ObjectiveTable& table, const FirstObjectives& first,
                              const ObjectiveRegistry& registry, unsigned* tickets, StepHeader* failed,
                              StepNotice* told, std::int64_t begun, cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_STEP_CUH
