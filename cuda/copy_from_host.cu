#include <algorithm>
#include <cstdint>
#include <cstring>

#include "copy_from_host.cuh"
#include "launch.cuh"

namespace bucket_moo::cuda {
namespace {

constexpr unsigned kThreads = 256;

/// Well inside the 4 KiB of arguments that every launch may have.
struct Piece {
  std::uint8_t bytes[2048];
};

__global__ void copy_piece(const Piece piece, const int bytes, std::uint8_t* __restrict__ device) {
  for (int i = static_cast<int>(threadIdx.x); i < bytes; i += static_cast<int>(blockDim.x)) device[i] = piece.bytes[i];
}

}  // namespace

cudaError_t launch_copy_from_host(const void* values, std::size_t bytes, void* device, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (values == nullptr || device == nullptr) return cudaErrorInvalidValue;
  for (std::size_t start = 0; start < bytes; start += sizeof(Piece)) {
    const std::size_t size = std::min(bytes - start, sizeof(Piece));
    Piece piece{};
    std::memcpy(piece.bytes, static_cast<const std::uint8_t*>(values) + start, size);
    const cudaError_t status = launch(copy_piece, {1, kThreads}, stream, piece, static_cast<int>(size),
                                      static_cast<std::uint8_t*>(device) + start);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace bucket_moo::cuda
