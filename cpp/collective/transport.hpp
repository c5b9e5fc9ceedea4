// What the MOO collectives ask of the network, and its implementation over a c10d process group.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

namespace bucket_moo {

/// The exchanges a MOO collective is made of. Every rank of the group must make the same calls in the same order, from
/// one thread at a time. A call returns when its buffers may be used again; it throws if a peer fails or the group's
/// timeout passes.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Sends `bytes` bytes at input + p * pitch to every other rank p and receives what rank p sends us in rows[p].
  /// The own block is not moved: rows[rank()] is ignored. The rows of other ranks must not overlap `input`.
  virtual void all_to_all(const std::byte* input, std::size_t pitch, std::size_t bytes,
                          std::span<std::byte* const> rows) = 0;

  /// In place: block r of `blocks` (size() blocks of `bytes` each) is rank r's on entry, and everybody's on return.
  virtual void all_gather(std::byte* blocks, std::size_t bytes) = 0;

  /// Makes the exchange in flight, and every later one, throw. May be called from any thread.
  virtual void abort() noexcept = 0;
};

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

  void post_receive(int peer, std::byte* data, std::size_t bytes, int tag);
  void post_send(int peer, const std::byte* data, std::size_t bytes, int tag);
  void post(Pending pending);
  void wait_all(const char* operation);
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
