// What the collective does on the device where ranks share objectives in groups. Torch-free; none of these functions
// throws, synchronises or allocates, and all can be captured in a graph.
#ifndef BUCKET_MOO_CUDA_GROUPS_CUH
#define BUCKET_MOO_CUDA_GROUPS_CUH

#include <cuda_runtime_api.h>

#include <bucket_moo/objective_table.hpp>
#include <bucket_moo/rank_groups.hpp>

#include "solve.cuh"

namespace bucket_moo::cuda {

/// Enqueues group_records(), and make_objective_table() of the own group's members. All pointers on the device.
/// \param records [W]
/// \param own     this rank's row
/// \param shares  [inside], of which the shares are what this group's ranks count for in its mean. Where `out.found`
///                has an error they mean nothing.
cudaError_t launch_group_records(const StepRecord* records, const RankRows& rows, int own, bool one_objective,
                                 const GroupRecords& out, const ObjectiveTable& shares, cudaStream_t stream);

/// Enqueues packed = the sum of a Gramian's parts, in their order, for the first header->k objectives. Nothing is
/// written where the step has an error, which has a K of 0.
/// \param header  of the step, device
/// \param parts   without a tail
/// \param k_bound K is at most this
/// \param packed  [K (K + 1) / 2], device, out; apart from the parts
/// \return cudaErrorInvalidValue for arguments out of range, else what the launch says
cudaError_t launch_sum_gramians(const StepHeader* header, const GramianParts& parts, int k_bound, double* packed,
                                cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_GROUPS_CUH
