// A bucket as a reduction sees it: one shard a rank, and a tail.
#pragma once

#include <cstddef>
#include <cstdint>

#include "collective/shard_layout.hpp"
#include "kernels/rows.hpp"

namespace bucket_moo {

struct ShardedBucket {
  const std::byte* shards;  ///< a shard for every rank, one after another
  const std::byte* tail;    ///< tail_size elements
  std::byte* shard_out;     ///< where this rank's shard of the result goes
  std::byte* tail_out;
  std::int64_t shard_size;
  std::int64_t tail_size;
  DType dtype;
  std::int64_t piece;  ///< elements of the shard in the tile at a time

  std::size_t shard_bytes() const { return static_cast<std::size_t>(shard_size) * element_size(dtype); }
  std::byte* element_out(std::int64_t i) const { return shard_out + static_cast<std::size_t>(i) * element_size(dtype); }
  std::size_t tail_bytes() const { return static_cast<std::size_t>(tail_size) * element_size(dtype); }
};

/// n elements at `bucket` that are replaced by the result. `tile_limit`: see piece_size().
inline ShardedBucket sharded_in_place(void* bucket, std::int64_t n, DType dtype, int rank, int world,
                                      std::int64_t tile_limit) {
  auto* const bytes = static_cast<std::byte*>(bucket);
  const std::size_t element = element_size(dtype);
  const ShardLayout layout = shard_layout(n, world, element);
  const std::size_t shard_bytes = static_cast<std::size_t>(layout.shard) * element;
  std::byte* const tail = bytes + static_cast<std::size_t>(world) * shard_bytes;
  return {.shards = bytes,
          .tail = tail,
          .shard_out = bytes + static_cast<std::size_t>(rank) * shard_bytes,
          .tail_out = tail,
          .shard_size = layout.shard,
          .tail_size = layout.tail,
          .dtype = dtype,
          .piece = piece_size(layout.shard, world, element, tile_limit)};
}

/// `world` shards at `input`, which are only read, and a result of one shard.
inline ShardedBucket sharded_apart(void* output, const void* input, std::int64_t shard, DType dtype, int world,
                                   std::int64_t tile_limit) {
  return {.shards = static_cast<const std::byte*>(input),
          .tail = nullptr,
          .shard_out = static_cast<std::byte*>(output),
          .tail_out = nullptr,
          .shard_size = shard,
          .tail_size = 0,
          .dtype = dtype,
          .piece = piece_size(shard, world, element_size(dtype), tile_limit)};
}

}  // namespace bucket_moo
