// Gramian of rows in device memory. Torch-free; none of these functions throws, synchronises or allocates.
#ifndef BUCKET_MOO_CUDA_GRAMIAN_CUH
#define BUCKET_MOO_CUDA_GRAMIAN_CUH

#include <cuda_runtime_api.h>

#include <bucket_moo/objective_table.hpp>
#include <cstddef>

#include "rows.cuh"

namespace bucket_moo::cuda {

/// How many blocks share the work. `device`: as many as fill the current device. `fixed`: the same number everywhere,
/// so that different GPUs compute the same bits; for small pieces that several ranks compute for themselves.
enum class Grid { device, fixed };

/// Counters by which the blocks of a launch find out which of them is the last.
inline constexpr int kGramianTickets = 65;

struct GramianArguments {
  DeviceRows rows;
  /// The step's objectives, in device memory (all pointers of the table): objective k's gradient is the sum over its
  /// members of share[r] * row[r], and K is known to the device alone. nullptr header: row k is objective k.
  ObjectiveTable table = {};
  /// With a table: the K to expect; 0: none. If it is the number of rows, up to 16, a fast kernel is launched for one
  /// row an objective, which does the work in a slower way if the table has it otherwise. The two differ in the last
  /// bits.
  int likely_k = 0;
  Grid grid = Grid::device;
  bool add = false;           ///< add to `packed` instead of overwriting it
  double* packed = nullptr;   ///< [K (K + 1) / 2] entry (i, j), j <= i, at i (i + 1) / 2 + j; device, out
  void* workspace = nullptr;  ///< gramian_workspace_size() bytes, device, 16-byte aligned; in use until the kernel ran
  /// [kGramianTickets], device: zero before the first launch, and again after each. Not for launches that may run at
  /// the same time.
  unsigned* tickets = nullptr;
};

/// Bytes of workspace for up to k objectives on the current device; with a table, of W rows, k is min(W, 64).
/// \return cudaErrorInvalidValue for k out of range
cudaError_t gramian_workspace_size(int k, std::size_t* bytes);

/// Enqueues one kernel: packed = the lower triangle of the Gramian of the objectives' gradients. Nothing is written if
/// the table has an error.
///
/// Accuracy: float32 sums of at most 1024 products, then float64. Where the float32 products of a part may have
/// overflowed or underflowed they are formed again in float64, so that
///  - entry (k, k) is non-finite only if g_k is (a NaN or Inf in a row that is read), and always then;
///  - entry (k, k) is zero only if g_k is, subnormal elements included.
/// Rows of share 0 are not read. float64 rows are multiplied in float64.
///
/// Bits: they depend on the values, on `likely_k` and, with Grid::device, on how many multiprocessors the device has;
/// not on the rows' alignment, nor on which block is done first.
///
/// \return cudaErrorInvalidValue for arguments out of range, else what the launch says. Can be captured in a graph.
cudaError_t launch_gramian(const GramianArguments& arguments, cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_GRAMIAN_CUH
