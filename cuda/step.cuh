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

/// Enqueues the same for a later pass of a step, which is not counted.
/// \param step    the step's number, device
cudaError_t launch_write_later_record(const StepRecord& own, const std::int64_t* step, StepRecord* slot,
                                      cudaStream_t stream);

/// What the host is told of the first step that had an error.
struct StepNotice {
  StepHeader header;       ///< error == none: there was none yet
  std::int64_t begun = 0;  ///< the host's own number of that step
};

/// Where a kernel tells of a step that has an error, if it is the first one.
struct FailureReport {
  StepHeader* first = nullptr;  ///< of that step, device; error == none: there was none yet
  /// The same in host memory that the device can write, for a host that waits for nothing: whoever loads an `error`
  /// from it, with acquire semantics, finds the rest there too.
  StepNotice* told = nullptr;
  std::int64_t begun = 0;  ///< steps that the host has begun, this one included. A replayed graph repeats its capture's
};

/// Enqueues make_objective_table(), and after it require_same_objectives() if `first` has names and assign_slots() if
/// `registry` has.
/// \param records [world], device
/// \param table, first, registry  all pointers on the device
/// \param tickets [kGramianTickets] of the step's Gramians, device; set to zero
/// \param found   device; nullptr: there is none
cudaError_t launch_make_table(const StepRecord* records, int world, const StepLimits& limits,
                              const ObjectiveTable& table, const FirstObjectives& first,
                              const ObjectiveRegistry& registry, unsigned* tickets, const FailureReport& report,
                              cudaStream_t stream, const StepHeader* found = nullptr);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_STEP_CUH
