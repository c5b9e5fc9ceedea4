// What one rank holds of all ranks' gradients: a piece of its shard at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "collective/persistent_buffer.hpp"
#include "collective/sharded_bucket.hpp"
#include "collective/transport.hpp"
#include "kernels/rows.hpp"

namespace bucket_moo {

/// Memory for the other ranks' blocks of a piece, and the exchange that fills it. The own block is read where it lies.
class Tile {
 public:
  /// Starts to load elements [begin, begin + bucket.piece) of this rank's shard, or as many as there are. `transport`
  /// may be null: a group of one rank.
  void start(Transport* transport, Transport::Sequence sequence, const ShardedBucket& bucket, std::int64_t begin);

  /// Waits until the piece is there: a row for every rank, valid until the next start().
  Rows wait();

  std::size_t capacity() const { return memory_.capacity(); }

 private:
  PersistentBuffer memory_;
  std::vector<std::byte*> rows_;  // [W]
  std::int64_t size_ = 0;
  DType dtype_ = DType::float32;
  std::unique_ptr<Transport::Exchange> exchange_;
};

}  // namespace bucket_moo
