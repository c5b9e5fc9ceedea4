// The transport over a c10d process group's send and receive.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

#include "collective/transport.hpp"

namespace bucket_moo {

/// Transport over the send and receive of a process group for CPU tensors (Gloo). Blocks go straight from the caller's
/// memory into the peer's: c10d's own all-to-all copies the local block, and Gloo's all-gather goes through a flat
/// temporary. The group must be used by nothing but such transports: message order then depends on these calls alone.
class PointToPointTransport final : public Transport {
 public:
  /// Ranks of the group that have a transport of their own, and which of the group's transports it is: messages of
  /// one do not meet those of another.
  enum class Channel { all, across, inside };

  /// Between all ranks of the group.
  explicit PointToPointTransport(c10::intrusive_ptr<c10d::ProcessGroup> group);
  /// Between some of them, in this order; this rank is one of them.
  PointToPointTransport(c10::intrusive_ptr<c10d::ProcessGroup> group, Channel channel, std::vector<int> members);

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }
  std::unique_ptr<Exchange> start_all_to_all(Sequence sequence, const std::byte* input, std::size_t pitch,
                                             std::size_t bytes, std::span<std::byte* const> rows) override;
  std::unique_ptr<Exchange> start_all_gather(Sequence sequence, std::byte* blocks, std::size_t pitch,
                                             std::size_t bytes) override;
  void abort() noexcept override;

  /// Bytes that this rank has sent. May be called from any thread.
  std::int64_t bytes_sent() const { return bytes_sent_; }

 private:
  class Messages;

  std::unique_ptr<Exchange> start(Sequence sequence, const char* operation, const std::function<void(Messages&)>& post);
  int next_tag(Sequence sequence);

  const c10::intrusive_ptr<c10d::ProcessGroup> group_;
  const Channel channel_;
  const std::vector<int> members_;             // by rank here, the rank in the group
  const int rank_;                             // here
  std::array<std::uint32_t, 2> started_ = {};  // exchanges of each sequence
  std::atomic<std::int64_t> bytes_sent_ = 0;
  std::mutex mutex_;  // guards what follows, and the messages in flight, against abort()
  std::set<Messages*> in_flight_;
  bool aborted_ = false;
};

}  // namespace bucket_moo
