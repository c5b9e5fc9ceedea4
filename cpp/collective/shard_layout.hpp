// How a bucket is cut into one shard a rank and a tail.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace bucket_moo {

/// A bucket of n elements is `world` shards of `shard` elements, one after another, then `tail` elements. Shards have
/// equal sizes and go through the collectives in place; the tail travels with the partial Gramians and is combined by
/// every rank.
struct ShardLayout {
  std::int64_t shard;
  std::int64_t tail;
};

/// Shards are multiples of this many bytes, so that every shard starts as aligned as its bucket does.
inline constexpr std::int64_t kShardAlignment = 16;

/// Up to this size a bucket is all tail: one small exchange costs less than three.
inline constexpr std::int64_t kGatherWholeBytes = 16 * 1024;

/// Layout of a bucket of n >= 0 elements of `element_size` bytes over `world` >= 1 ranks.
inline ShardLayout shard_layout(std::int64_t n, int world, std::size_t element_size) {
  if (world == 1) {
    return {n, 0};
  }
  const auto size = static_cast<std::int64_t>(element_size);
  if (n * size <= kGatherWholeBytes) {
    return {0, n};
  }
  const std::int64_t step = kShardAlignment / size;
  const std::int64_t shard = n / world / step * step;
  return {shard, n - shard * world};
}

/// How many elements of a shard are in the tile at a time, so that the other ranks' blocks take at most `limit` bytes
/// (but at least one aligned element of each rank). The whole shard where it fits.
inline std::int64_t piece_size(std::int64_t shard, int world, std::size_t element_size, std::int64_t limit) {
  const auto size = static_cast<std::int64_t>(element_size);
  const std::int64_t others = world - 1;
  if (others * shard * size <= limit) {
    return shard;
  }
  const std::int64_t step = kShardAlignment / size;
  return std::max(limit / (others * size) / step, std::int64_t{1}) * step;
}

}  // namespace bucket_moo
