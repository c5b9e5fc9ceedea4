// The transport over a c10d process group's send and receive.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "collective/transport.hpp"

namespace bucket_moo {

/// Transport over the send and receive of a process group for CPU tensors (Gloo). Blocks go straight from the caller's
/// memory into the peer's: c10d's own all-to-all copies the local block, and Gloo's all-gather goes through a flat
/// temporary. The group must be used by nothing else, so that message order depends on these calls alone.
class PointToPointTransport final : public Transport {
 public:
  explicit PointToPointTransport(c10::intrusive_ptr<c10d::ProcessGroup> group);

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::unique_ptr<Exchange> start_all_to_all(Sequence sequence, const std::byte* input, std::size_t pitch,
                                             std::size_t bytes, std::span<std::byte* const> rows) override;
  std::unique_ptr<Exchange> start_all_gather(Sequence sequence, std::byte* blocks, std::size_t pitch,
                                             std::size_t bytes) override;
  void abort() noexcept override;

 private:
  class Messages;

  std::unique_ptr<Exchange> start(Sequence sequence, const char* operation, const std::function<void(Messages&)>& post);
  int next_tag(Sequence sequence);

  const c10::intrusive_ptr<c10d::ProcessGroup> group_;
  const int rank_;
  const int size_;
  std::array<std::uint32_t, 2> started_ = {};  // exchanges of each sequence
  std::mutex mutex_;                           // guards what follows, and the messages in flight, against abort()
  std::set<Messages*> in_flight_;
  bool aborted_ = false;
};

}  // namespace bucket_moo
