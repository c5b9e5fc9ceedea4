// Ranges of a bucket that get Gramians and weights of their own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "collective/sharded_bucket.hpp"

namespace bucket_moo {

/// Elements [begin, begin + size) that belong to part number `part`.
struct Section {
  std::int64_t begin;
  std::int64_t size;
  int part;
};

/// What of [begin, begin + size) belongs to which part; `begin` becomes 0.
inline std::vector<Section> clip(std::span<const Section> sections, std::int64_t begin, std::int64_t size) {
  std::vector<Section> clipped;
  for (const Section& section : sections) {
    const std::int64_t first = std::max(section.begin, begin);
    const std::int64_t last = std::min(section.begin + section.size, begin + size);
    if (first < last) {
      clipped.push_back({first - begin, last - first, section.part});
    }
  }
  return clipped;
}

/// A bucket's parts, as far as they lie where this rank reduces. A part may be in several sections, or in none.
struct Sections {
  std::vector<Section> shard;  ///< from the beginning of the shard
  std::vector<Section> tail;   ///< from that of the tail
  int parts = 1;               ///< of the whole bucket, the same on every rank
  /// Parts whose Gramians count on a rank that holds another piece of the model, and not here too: copies.
  std::vector<int> counted_elsewhere = {};
};

/// All of it is one part.
inline Sections one_part(std::int64_t shard_size, std::int64_t tail_size) {
  return {{{0, shard_size, 0}}, {{0, tail_size, 0}}};
}

}  // namespace bucket_moo
