// Sketch of a row in device memory, see bucket_moo/sketch.hpp. Torch-free; none of these functions throws, synchronises
// or allocates.
#ifndef BUCKET_MOO_CUDA_SKETCH_CUH
#define BUCKET_MOO_CUDA_SKETCH_CUH

#include <cuda_runtime_api.h>

#include <bucket_moo/objective_table.hpp>
#include <bucket_moo/random.hpp>
#include <bucket_moo/sketch.hpp>
#include <cstddef>
#include <cstdint>

#include "kernels/rows.hpp"

namespace bucket_moo::cuda {

struct SketchArguments {
  const void* row = nullptr;  ///< [n], device; aligned to its element size, faster where 16-byte aligned
  std::int64_t size = 0;      ///< n >= 0, in elements
  DType dtype = DType::float32;
  std::int64_t width = kMinSketchWidth;  ///< p, is_sketch_width(p)
  std::uint64_t seed = 0;                ///< of the map's key
  std::uint64_t bucket = 0;              ///< of the map's key
  /// The step's objectives, in device memory (all pointers of the table). The step of the map's key is the header's, so
  /// that a replayed graph draws anew. nullptr header: the step is `step`, the share 1, and there is one row.
  ObjectiveTable table = {};
  std::uint64_t step = 0;          ///< of the map's key, without a table
  const RandomKey* key = nullptr;  ///< device, without a table: in the place of seed, bucket and step; nullptr: those
  int rank = 0;                    ///< with a table: whose row it is
  int rows = 1;                    ///< rows of `out`: with a table, K at least; without, 1
  void* out = nullptr;             ///< [rows, p], device, out; float64 for float64 elements, else float32
  void* workspace = nullptr;  ///< sketch_workspace_size() bytes, device, 8-byte aligned; in use until the kernels ran
};

/// Bytes of workspace for a row of n elements on the current device: a few megabytes, or those of one row of `out` if
/// that is more.
/// \return cudaErrorInvalidValue for arguments out of range
cudaError_t sketch_workspace_size(std::int64_t size, DType dtype, std::int64_t width, std::size_t* bytes);

/// Enqueues out[objective of the rank] = the rank's share * the sketch of its row, and zeros in all other rows of
/// `out`: added up over the ranks, these are the sketches of the objectives' gradients. A rank of share 0 gives zeros
/// everywhere, and its row is not read. If the table has an error, all ranks give zeros.
///
/// Accuracy: a thread adds its part of the row in float32, at most 16 elements at a time. The sums of the threads of a
/// block, and of the blocks, are added in float64; that of a block is kept in float32. For float64 elements all of it
/// is float64. A NaN or Inf of the row is one in the sketch, and a row of zeros gives zeros. Elements of float32 or
/// bfloat16 beyond 1e36 may overflow in a column.
///
/// Bits: no atomics. They depend on the values, on n, p and the device's number of multiprocessors; not on the row's
/// alignment.
///
/// Cost: reads the row once.
/// \return cudaErrorInvalidValue for arguments out of range, else what the launch says. Can be captured in a graph.
cudaError_t launch_sketch(const SketchArguments& arguments, cudaStream_t stream);

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_SKETCH_CUH
