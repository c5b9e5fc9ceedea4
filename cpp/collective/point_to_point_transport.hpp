// The transport over a c10d process group's send and receive.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

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
  void all_to_all(const std::byte* input, std::size_t pitch, std::size_t bytes,
                  std::span<std::byte* const> rows) override;
  void all_gather(std::byte* blocks, std::size_t bytes) override;
  void abort() noexcept override;

 private:
  struct Pending {
    c10::intrusive_ptr<c10d::Work> work;
    int peer;
    bool is_send;
  };

  void exchange(const char* operation, const std::function<void(int tag)>& post);
  void receive(int peer, std::byte* data, std::size_t bytes, int tag);
  void send(int peer, const std::byte* data, std::size_t bytes, int tag);
  void start(int peer, bool is_send, const std::function<c10::intrusive_ptr<c10d::Work>()>& post);
  void wait_all();
  int next_tag();

  const c10::intrusive_ptr<c10d::ProcessGroup> group_;
  const int rank_;
  const int size_;
  std::uint32_t sequence_ = 0;
  std::mutex mutex_;  // guards pending_ and aborted_ against abort()
  std::vector<Pending> pending_;
  bool aborted_ = false;
};

}  // namespace bucket_moo
