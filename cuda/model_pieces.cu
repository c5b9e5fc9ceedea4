// What ranks that hold other pieces of a model tell each other.
#include <cuda_runtime.h>

#include <bucket_moo/random.hpp>
#include <cstring>

#include "failure_report.cuh"
#include "launch.cuh"
#include "model_pieces.cuh"

namespace bucket_moo::cuda {
namespace {

__device__ std::uint64_t bits_of_number(double value) {
  return static_cast<std::uint64_t>(__double_as_longlong(value));
}

/// By one thread.
__global__ void __launch_bounds__(kWarp)
    write_piece(const StepSums sums, const std::uint64_t bucket, PieceSaid* __restrict__ said) {
  if (threadIdx.x != 0) return;
  std::uint64_t number = mix_bits(bucket);
  const auto add = [&](std::uint64_t word) { number = mix_bits((number ^ word) + 0x9e3779b97f4a7c15u); };
  const StepHeader header = *sums.header;
  add(static_cast<std::uint64_t>(header.k));
  add(static_cast<std::uint64_t>(header.step));
  for (int i = 0; i < header.k; ++i) {
    for (const std::uint64_t word : sums.record[i].objective.words) add(word);
    add(bits_of_number(sums.unit[i]));
    add(bits_of_number(sums.total[i]));
  }
  *said = {header.error == StepError::none ? number | 1u : 0u, 0};
}

/// By one thread, then the warp.
__global__ void __launch_bounds__(kWarp)
    check_pieces(const std::byte* __restrict__ messages, const std::int64_t pitch, const int count, const int own,
                 StepHeader* header, StepHeader* table, const FailureReport report) {
  if (threadIdx.x == 0 && header->error == StepError::none) {
    const auto number = [&](int p) { return reinterpret_cast<const PieceSaid*>(messages + p * pitch)->number; };
    int other = 0;
    while (other < count && number(other) == number(own)) ++other;
    if (other < count) {
      header->error = table->error = StepError::other_piece;
      header->culprit = table->culprit = other;
      header->k = table->k = 0;
    }
  }
  report_failure(*header, report);
}

}  // namespace

cudaError_t launch_write_piece(const StepSums& sums, std::uint64_t bucket, PieceSaid* said, cudaStream_t stream) {
  return launch(write_piece, {1, kWarp}, stream, sums, bucket, said);
}

cudaError_t launch_check_pieces(const std::byte* messages, std::int64_t pitch, int count, int own, StepHeader* header,
                                StepHeader* table, const FailureReport& report, cudaStream_t stream) {
  if (own < 0 || own >= count) return cudaErrorInvalidValue;
  return launch(check_pieces, {1, kWarp}, stream, messages, pitch, count, own, header, table, report);
}

}  // namespace bucket_moo::cuda
