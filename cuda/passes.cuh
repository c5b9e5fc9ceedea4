// What the collective does on the device in a step of several passes. Torch-free; none of these functions throws,
// synchronises or allocates.
#ifndef BUCKET_MOO_CUDA_PASSES_CUH
#define BUCKET_MOO_CUDA_PASSES_CUH

#include <cuda_runtime_api.h>

#include <bucket_moo/objective_table.hpp>
#include <bucket_moo/pass_table.hpp>

#include "step.cuh"

namespace bucket_moo::cuda {

/// Enqueues add_pass(), and tells of an error as launch_make_table() does.
/// \param records [world], device
/// \param sums, pass  all pointers on the device
/// \param found   device; nullptr: there is none
cudaError_t launch_add_pass(const StepRecord* records, int world, const PassRules& rules, const StepSums& sums,
                            const PassTable& pass, unsigned* tickets, const FailureReport& report, cudaStream_t stream,
                            const StepHeader* found = nullptr);

/// Enqueues begin_addition() for the objectives of `header`. All pointers on the device.
/// \param fresh  nothing was added to the bucket's sums yet, whatever `unit` holds
/// \param share  becomes share_of(pass, world, rank)
cudaError_t launch_begin_addition(const StepHeader* header, int world, int rank, const PassTable& pass, bool fresh,
                                  double* unit, double* decay, PassShare* share, cudaStream_t stream);

/// Enqueues make_sums_table(), and after it assign_slots() if `registry` has names, and tells of an error as
/// launch_make_table() does.
/// \param unit [capacity], device
cudaError_t launch_make_sums_table(const StepSums& sums, const double* unit, int capacity, const ObjectiveTable& table,
                                   const ObjectiveRegistry& registry, const FailureReport& report, cudaStream_t stream);

/// Enqueues the addition of a bucket's Gramian to that of its step. Nothing is written if the step has an error, which
/// has a K of 0.
/// \param gramian [K, K], device
/// \param add     to `packed` instead of overwriting it
/// \param packed  [K (K + 1) / 2] entry (i, j), j <= i, at i (i + 1) / 2 + j; device, in and out
cudaError_t launch_add_gramian(const StepHeader* header, const double* gramian, bool add, double* packed,
                               cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_PASSES_CUH
