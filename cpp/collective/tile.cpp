#include "collective/tile.hpp"

#include <algorithm>

#include "collective/memory_layout.hpp"
#include "collective/profiler_scope.hpp"

namespace bucket_moo {

void Tile::start(Transport* transport, Transport::Sequence sequence, const ShardedBucket& bucket, std::int64_t begin) {
  const std::size_t world = transport == nullptr ? 1 : static_cast<std::size_t>(transport->size());
  const std::size_t rank = transport == nullptr ? 0 : static_cast<std::size_t>(transport->rank());
  const std::size_t element = element_size(bucket.dtype);
  size_ = std::min(bucket.piece, bucket.shard_size - begin);
  dtype_ = bucket.dtype;
  const std::size_t bytes = static_cast<std::size_t>(size_) * element;
  const std::byte* const input = bucket.shards + static_cast<std::size_t>(begin) * element;
  // Blocks lie side by side, each on its own cache lines.
  const std::size_t pitch = round_up(bytes, PersistentBuffer::kAlignment);
  std::byte* row = memory_.reserve((world - 1) * pitch);
  rows_.resize(world);
  for (std::size_t r = 0; r < world; ++r) {
    if (r == rank) {
      rows_[r] = const_cast<std::byte*>(input) + r * bucket.shard_bytes();  // only read
    } else {
      rows_[r] = row;
      row += pitch;
    }
  }
  if (transport != nullptr) {
    exchange_ = transport->start_all_to_all(sequence, input, bucket.shard_bytes(), bytes, rows_);
  }
}

Rows Tile::wait() {
  if (exchange_) {
    const ProfilerScope stage("bucket_moo all_to_all");
    exchange_->wait();
    exchange_.reset();
  }
  return {reinterpret_cast<const void* const*>(rows_.data()), static_cast<int>(rows_.size()), size_, dtype_};
}

}  // namespace bucket_moo
