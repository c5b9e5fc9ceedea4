// Parts of a bucket that have weights of their own: a Gramian for each, the problems that they belong to, and a sum by
// the weights of these.
#include <cuda_runtime.h>

#include <bucket_moo/hash.hpp>
#include <bucket_moo/packed_triangle.hpp>
#include <bucket_moo/supports.hpp>
#include <cmath>
#include <cstdint>

#include "elements.cuh"
#include "gramian_float64.cuh"
#include "gramian_pass.cuh"
#include "gramian_tiled.cuh"
#include "kernels/combine.hpp"
#include "kernels/normal_float32.hpp"
#include "launch.cuh"
#include "parts.cuh"
#include "reduction_counters.cuh"
#include "warp_sums.cuh"

namespace bucket_moo::cuda {
namespace {

constexpr int kThreads = 256;

struct PieceGramians {
  GramianPass pass;
  const PartPiece* pieces;
};

/// A block a piece, of float32 rows.
__global__ void __launch_bounds__(kGramianThreads, 2) piece_gramian(const __grid_constant__ PieceGramians work) {
  const int k = objective_count(work.pass);
  if (k == 0) return;
  const PartPiece piece = work.pieces[blockIdx.x];
  const std::int64_t end = piece.begin + piece.size;
  const bool aligned = work.pass.aligned && piece.begin % kPerVector<DType::float32> == 0;
  TiledGramian<LargeTile, DType::float32> gramian(work.pass, k, end, aligned);
#pragma unroll 1
  for (std::int64_t begin = piece.begin; begin < end; begin += gramian.columns()) gramian.add_tile(begin);
  gramian.store();
}

__global__ void __launch_bounds__(kGramianThreads) piece_gramian_float64(const __grid_constant__ PieceGramians work) {
  const int entries = packed_size(objective_count(work.pass));
  if (entries == 0) return;
  const PartPiece piece = work.pieces[blockIdx.x];
  multiply_float64(work.pass, entries, piece.begin, piece.begin + piece.size, kFloat64Tile);
}

/// A block a part: adds up its pieces. A warp an entry, in turn, and a lane every 32nd piece.
__global__ void __launch_bounds__(kThreads)
    sum_pieces(const StepHeader* __restrict__ header, const int* __restrict__ first, const double* __restrict__ partial,
               const PartGramians out) {
  if (header->error != StepError::none) return;
  const int entries = packed_size(header->k);
  const int part = static_cast<int>(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int end = first[part + 1];
  for (int entry = static_cast<int>(threadIdx.x) / kWarp; entry < entries; entry += kThreads / kWarp) {
    double sum = 0.0;
#pragma unroll 4
    for (int piece = first[part] + lane; piece < end; piece += kWarp) {
      sum += partial[static_cast<std::int64_t>(piece) * entries + entry];
    }
    sum = warp_sum(sum);
    if (lane == 0) out.packed[part * out.stride + entry] = sum;
  }
}

/// A block a part, a thread an entry.
__global__ void __launch_bounds__(kThreads)
    sum_part_gramians(const StepHeader* __restrict__ header, const double* __restrict__ own,
                      const std::byte* __restrict__ left_out, const std::byte* __restrict__ messages,
                      const std::int64_t pitch, const int world, const PartGramians out) {
  const bool is_zero = left_out != nullptr && left_out[blockIdx.x] != std::byte{0};
  const int entries = header->error == StepError::none ? packed_size(header->k) : 0;
  const std::int64_t part = static_cast<std::int64_t>(blockIdx.x) * out.stride;
  for (int entry = static_cast<int>(threadIdx.x); entry < entries; entry += kThreads) {
    double sum = own != nullptr ? own[part + entry] : 0.0;
#pragma unroll 8
    for (int r = 0; r < world; ++r) sum += reinterpret_cast<const double*>(messages + r * pitch)[part + entry];
    out.packed[part + entry] = is_zero ? 0.0 : sum;
  }
}

struct PlaceShared {
  std::uint64_t name[kMaxObjectives];
  int before;  ///< problems of the group
  int count;   ///< with those of these parts
};

/// Puts the parts of a group into its problems, one after the other. By one thread.
__device__ void place_parts(int k, const GroupedParts& parts, const PartProblems& problems, std::int64_t now,
                            const std::uint64_t* support, PartPlace* places, PlaceShared& shared) {
  const int here = static_cast<int>(blockIdx.x);
  const int group = parts.group[here];
  const std::int64_t base = static_cast<std::int64_t>(group) * problems.each;
  std::uint64_t* const known = problems.support + base;
  int count = problems.begun[group] == now ? problems.count[group] : 0;
  shared.before = count;
  for (int p = parts.begin[here]; p < parts.begin[here + 1]; ++p) {
    const int part = parts.part[p];
    Support of_problem = support[part];
    const int place = problem_of(count, [known](int i) { return known[i]; }, all_objectives(k), &of_problem);
    if (place == count) {
      std::uint64_t key = parts.hash != nullptr ? parts.hash[here] : parts.one_hash;
      for (int i = 0; parts.names_in_key && i < k; ++i) key += (of_problem >> i & 1u) != 0 ? shared.name[i] : 0;
      known[place] = of_problem;
      problems.key[base + place] = key;
      ++count;
    }
    const std::int64_t problem = base + place;
    places[part] = {problems.result.weights + problem * problems.capacity, problems.result.solution + problem, problem};
  }
  problems.begun[group] = now;
  problems.count[group] = count;
  shared.count = count;
}

/// A block a group that the bucket has parts of.
__global__ void __launch_bounds__(kThreads, 1)
    place_parts_kernel(const StepSums sums, const PartGramians gramians, const GroupedParts parts,
                       const PartProblems problems, const bool by_support, const std::int64_t now,
                       std::uint64_t* __restrict__ support, PartPlace* __restrict__ places) {
  const int k = sums.header->k;  // 0 after an error
  if (k == 0) return;
  PlaceShared& shared = *dynamic_shared<PlaceShared>();
  const int thread = static_cast<int>(threadIdx.x);
  const int first = parts.begin[blockIdx.x];
  const int end = parts.begin[blockIdx.x + 1];
  if (thread < k) shared.name[thread] = hash_text(sums.record[thread].objective.text());
  for (int p = first + thread; p < end; p += kThreads) {
    const double* const packed = gramians.packed + parts.part[p] * gramians.stride;
    support[parts.part[p]] =
        by_support ? support_of(k, [packed](int i) { return packed[packed_index(i, i)]; }) : all_objectives(k);
  }
  __syncthreads();
  if (thread == 0) place_parts(k, parts, problems, now, support, places, shared);
  __syncthreads();
  const std::int64_t size = packed_size(problems.capacity);
  double* const of_group = problems.packed + static_cast<std::int64_t>(parts.group[blockIdx.x]) * problems.each * size;
  for (int entry = thread; entry < packed_size(k); entry += kThreads) {
    for (int problem = shared.before; problem < shared.count; ++problem) of_group[problem * size + entry] = 0.0;
    for (int p = first; p < end; ++p) {
      const int part = parts.part[p];
      problems.packed[places[part].problem * size + entry] += gramians.packed[part * gramians.stride + entry];
    }
  }
}

/// A block a part.
__global__ void __launch_bounds__(kThreads)
    part_coefficients(const ObjectiveTable table, const int rows, const PartPlace* __restrict__ places,
                      DeviceCounters* __restrict__ counters, double* __restrict__ coefficients) {
  const bool failed = table.header->error != StepError::none;
  const int part = static_cast<int>(blockIdx.x);
  for (int r = static_cast<int>(threadIdx.x); r < rows; r += kThreads) {
    coefficients[part * rows + r] = failed ? nan("") : places[part].weights[table.objective[r]] * table.share[r];
  }
  if (part > 0 || failed || counters == nullptr) return;
  bool nonfinite = false;
  for (int p = static_cast<int>(threadIdx.x); p < static_cast<int>(gridDim.x); p += kThreads) {
    nonfinite = nonfinite || places[p].solution->status == Status::nonfinite;
  }
  const bool any = __syncthreads_or(nonfinite ? 1 : 0) != 0;
  if (threadIdx.x == 0) count_reduction(*counters, {.status = any ? Status::nonfinite : Status::ok});
}

struct PartCombination {
  DeviceRows rows;
  const PartPiece* pieces;
  const double* coefficients;
  void* out;
};

template <DType D>
__device__ auto element_of(const void* row, std::int64_t at) {
  if constexpr (D == DType::float64) {
    return static_cast<const double*>(row)[at];
  } else {
    return Element<D>::value(static_cast<const Bits<D>*>(row)[at]);
  }
}

template <DType Out>
__device__ void store_element(void* out, std::int64_t at, double value) {
  if constexpr (Out == DType::float64) {
    static_cast<double*>(out)[at] = value;
  } else {
    static_cast<Bits<Out>*>(out)[at] = Element<Out>::rounded(static_cast<float>(value));
  }
}

/// The sum in the accumulation type T; multiplied and added in two roundings, as on the host.
template <DType D, DType Out, class T>
__device__ void combine_piece(const PartCombination& work, const PartPiece& piece, const double* coefficient) {
  for (int i = static_cast<int>(threadIdx.x); i < piece.size; i += kThreads) {
    const std::int64_t at = piece.begin + i;
    T sum = static_cast<T>(-0.0);  // changes nothing it is added to
    bool any = false;
#pragma unroll 4
    for (int r = 0; r < work.rows.count; ++r) {
      if (coefficient[r] == 0.0) continue;
      any = true;
      sum = sum + static_cast<T>(coefficient[r]) * static_cast<T>(element_of<D>(work.rows.row(r), at));
    }
    store_element<Out>(work.out, at, any ? static_cast<double>(sum) : 0.0);
  }
}

/// A block a piece.
template <DType D, DType Out>
__global__ void __launch_bounds__(kThreads) combine_pieces(const __grid_constant__ PartCombination work) {
  const PartPiece piece = work.pieces[blockIdx.x];
  double* const coefficient = dynamic_shared<double>();
  bool wide = D == DType::float64;
  if (static_cast<int>(threadIdx.x) < work.rows.count) {
    const double c =
        piece.part < 0 ? 0.0 : work.coefficients[piece.part * work.rows.count + static_cast<int>(threadIdx.x)];
    coefficient[threadIdx.x] = c;
    wide = wide || !normal_float32(c);
  }
  if (__syncthreads_or(wide ? 1 : 0) != 0) {
    combine_piece<D, Out, double>(work, piece, coefficient);
  } else if constexpr (D != DType::float64) {
    combine_piece<D, Out, float>(work, piece, coefficient);
  }
}

using CombineKernel = void (*)(PartCombination);

CombineKernel combine_kernel_of(DType dtype, DType out_dtype) {
  if (dtype == DType::float64) return combine_pieces<DType::float64, DType::float64>;
  switch (out_dtype) {
    case DType::bfloat16:
      return combine_pieces<DType::float32, DType::bfloat16>;
    case DType::float16:
      return combine_pieces<DType::float32, DType::float16>;
    default:
      return combine_pieces<DType::float32, DType::float32>;
  }
}

bool are_sums(const DeviceRows& rows) {
  return valid(rows) && rows.count <= kMaxObjectives && (rows.dtype == DType::float32 || rows.dtype == DType::float64);
}

unsigned blocks(int count) { return static_cast<unsigned>(count); }

}  // namespace

std::size_t part_workspace_size(int pieces, int k) {
  return sizeof(double) * static_cast<std::size_t>(packed_size(k)) * static_cast<std::size_t>(pieces);
}

cudaError_t launch_part_gramians(const DeviceRows& rows, const ObjectiveTable& table, const PartPieces& pieces,
                                 void* workspace, const PartGramians& out, cudaStream_t stream) {
  if (!are_sums(rows) || table.header == nullptr || pieces.parts < 1) return cudaErrorInvalidValue;
  PieceGramians work{{.rows = rows,
                      .table = table,
                      .aligned = vector_aligned(rows),
                      .add = false,
                      .plan = {},
                      .partial = static_cast<double*>(workspace),
                      .tickets = nullptr,
                      .packed = nullptr},
                     pieces.all};
  for (int r = 0; r < rows.count; ++r) work.pass.rows.scattered[r] = rows.row(r);
  cudaError_t status = cudaSuccess;
  if (pieces.in_parts > 0) {
    status =
        rows.dtype == DType::float64
            ? launch(piece_gramian_float64, {blocks(pieces.in_parts), kGramianThreads, kFloat64Shared}, stream, work)
            : launch(piece_gramian, {blocks(pieces.in_parts), kGramianThreads, sizeof(TiledShared<LargeTile>)}, stream,
                     work);
  }
  if (status != cudaSuccess) return status;
  return launch(sum_pieces, {blocks(pieces.parts), kThreads}, stream, table.header, pieces.first, work.pass.partial,
                out);
}

cudaError_t launch_sum_part_gramians(const StepHeader* header, int parts, int k_bound, const double* own,
                                     const std::byte* left_out, const std::byte* messages, std::int64_t pitch,
                                     int world, const PartGramians& out, cudaStream_t stream) {
  if (parts < 1 || out.stride < packed_size(k_bound)) return cudaErrorInvalidValue;
  return launch(sum_part_gramians, {blocks(parts), kThreads}, stream, header, own, left_out, messages, pitch, world,
                out);
}

cudaError_t launch_place_parts(const StepSums& sums, const PartGramians& gramians, const GroupedParts& parts,
                               const PartProblems& problems, bool by_support, std::int64_t now, std::uint64_t* support,
                               PartPlace* places, cudaStream_t stream) {
  if (parts.groups < 1 || problems.each < 1) return cudaErrorInvalidValue;
  return launch(place_parts_kernel, {blocks(parts.groups), kThreads, sizeof(PlaceShared)}, stream, sums, gramians,
                parts, problems, by_support, now, support, places);
}

cudaError_t launch_part_coefficients(const ObjectiveTable& table, int rows, int parts, const PartPlace* places,
                                     DeviceCounters* counters, double* coefficients, cudaStream_t stream) {
  if (rows < 1 || parts < 1) return cudaErrorInvalidValue;
  return launch(part_coefficients, {blocks(parts), kThreads}, stream, table, rows, places, counters, coefficients);
}

cudaError_t launch_combine_parts(const DeviceRows& rows, const PartPieces& pieces, const double* coefficients,
                                 void* out, DType out_dtype, cudaStream_t stream) {
  if (!are_sums(rows) || !combines_to(rows.dtype, out_dtype)) return cudaErrorInvalidValue;
  if (pieces.count == 0) return cudaSuccess;
  return launch(combine_kernel_of(rows.dtype, out_dtype),
                {blocks(pieces.count), kThreads, sizeof(double) * kMaxObjectives}, stream,
                PartCombination{rows, pieces.all, coefficients, out});
}

}  // namespace bucket_moo::cuda
