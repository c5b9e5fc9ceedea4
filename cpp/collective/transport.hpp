// What the MOO collectives ask of the network. Needs nothing of torch.
#pragma once

#include <cstddef>
#include <span>

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

}  // namespace bucket_moo
