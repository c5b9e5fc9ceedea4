// What the MOO collectives ask of the network. Needs nothing of torch.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

namespace bucket_moo {

/// The exchanges a MOO collective is made of, called from one thread at a time. They throw if a peer fails or the
/// group's timeout passes.
class Transport {
 public:
  /// Every rank of the group must start the exchanges of one sequence in the same order. How those of two sequences
  /// fall between each other may differ from rank to rank, and several may be under way.
  enum class Sequence { main, ahead };

  /// An exchange under way. Whoever lets go of it without wait(), or after it threw, gives it up: nothing is written to
  /// its buffers afterwards. Must not outlive the transport.
  class Exchange {
   public:
    virtual ~Exchange() = default;
    /// Returns when the buffers may be used again.
    virtual void wait() = 0;
  };

  /// An exchange that was over when it was started.
  class Done final : public Exchange {
   public:
    void wait() override {}
  };

  virtual ~Transport() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Sends `bytes` bytes at input + p * pitch to every other rank p and receives what rank p sends us in rows[p].
  /// The own block is not moved: rows[rank()] is ignored. The rows of other ranks must not overlap `input`. `rows`
  /// itself is not needed after the return.
  virtual std::unique_ptr<Exchange> start_all_to_all(Sequence sequence, const std::byte* input, std::size_t pitch,
                                                     std::size_t bytes, std::span<std::byte* const> rows) = 0;

  /// In place: block r, `bytes` bytes at blocks + r * pitch, is rank r's on entry, and everybody's when it is done.
  virtual std::unique_ptr<Exchange> start_all_gather(Sequence sequence, std::byte* blocks, std::size_t pitch,
                                                     std::size_t bytes) = 0;

  /// Makes the exchanges in flight, and every later one, throw. May be called from any thread.
  virtual void abort() noexcept = 0;

  void all_to_all(const std::byte* input, std::size_t pitch, std::size_t bytes, std::span<std::byte* const> rows) {
    start_all_to_all(Sequence::main, input, pitch, bytes, rows)->wait();
  }
  void all_gather(std::byte* blocks, std::size_t bytes) {
    start_all_gather(Sequence::main, blocks, bytes, bytes)->wait();
  }
};

}  // namespace bucket_moo
