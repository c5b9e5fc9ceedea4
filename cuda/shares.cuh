// What rows count for in their objectives, for problems whose weights the device alone knows. Torch-free; none of these
// functions throws, synchronises or allocates, and all can be captured in a graph.
#ifndef BUCKET_MOO_CUDA_SHARES_CUH
#define BUCKET_MOO_CUDA_SHARES_CUH

#include <cuda_runtime_api.h>

#include <bucket_moo/objective_table.hpp>
#include <cstdint>

#include "numbers.cuh"

namespace bucket_moo::cuda {

/// Rows of problems that are alike but for what the rows count for.
struct RowObjectives {
  const int* objective = nullptr;  ///< [rows] in [0, k), each of them at least once; device
  int rows = 0;                    ///< R >= 1, of a problem
  int k = 0;                       ///< objectives, 1 <= k <= min(R, kMaxObjectives)
  int batch = 0;                   ///< problems, >= 0
};

/// Enqueues shares[b, r] = the weight of row r over the sum of the weights of its objective's rows, as
/// make_objective_table() has them: 0 for a row that is left out.
/// \param weights  [batch, R] finite and >= 0, device. Where a problem has another one all its shares are NaN: nobody
///                 can be told without waiting for the device
/// \param shares   [batch, R], device, out
/// \return cudaErrorInvalidValue for arguments out of range, else what the launch says
cudaError_t launch_shares(const RowObjectives& rows, Numbers weights, Numbers shares, cudaStream_t stream);

/// The tables of a batch, in device memory.
struct ObjectiveTables {
  StepHeader* header = nullptr;  ///< [batch]
  int* leader = nullptr;         ///< [batch, R]
  double* share = nullptr;       ///< [batch, R]
  int* begin = nullptr;          ///< [batch, R + 1]
  int* member = nullptr;         ///< [batch, R]

  /// That of one problem.
  BUCKET_MOO_HD ObjectiveTable table(const RowObjectives& rows, std::int64_t problem) const {
    return {header + problem,
            leader + problem * rows.rows,
            const_cast<int*>(rows.objective),  // a table of a step is written where it is made, and nowhere else
            share + problem * rows.rows,
            begin + problem * (rows.rows + 1),
            member + problem * rows.rows};
  }
};

/// Enqueues the tables of rows that have these shares. A row whose share is NaN is a member, so that its objective's
/// gradient is NaN.
/// \param shares  [batch, R], device; apart from `tables.share`
/// \return as launch_shares()
cudaError_t launch_tables(const RowObjectives& rows, Numbers shares, const ObjectiveTables& tables,
                          cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_SHARES_CUH
