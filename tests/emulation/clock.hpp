// Vector clocks: what is known to have been done when something runs.
#ifndef BUCKET_MOO_EMULATION_CLOCK_HPP
#define BUCKET_MOO_EMULATION_CLOCK_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bucket_moo::emulation {

/// A moment of a stream.
struct Epoch {
  int stream = 0;
  std::uint64_t time = 0;  ///< 0: never
};

/// For every stream, up to when its work is known to be done.
class Clock {
 public:
  bool has(Epoch epoch) const { return time_of(epoch.stream) >= epoch.time; }

  /// The next moment of a stream.
  Epoch tick(int stream) {
    if (seen_.size() <= static_cast<std::size_t>(stream)) seen_.resize(static_cast<std::size_t>(stream) + 1);
    return {stream, ++seen_[static_cast<std::size_t>(stream)]};
  }

  /// Knows what `other` knows, too.
  void join(const Clock& other) {
    if (seen_.size() < other.seen_.size()) seen_.resize(other.seen_.size());
    for (std::size_t s = 0; s < other.seen_.size(); ++s) seen_[s] = std::max(seen_[s], other.seen_[s]);
  }

  Epoch now(int stream) const { return {stream, time_of(stream)}; }

 private:
  std::uint64_t time_of(int stream) const {
    return static_cast<std::size_t>(stream) < seen_.size() ? seen_[static_cast<std::size_t>(stream)] : 0;
  }

  std::vector<std::uint64_t> seen_;
};

}  // namespace bucket_moo::emulation

#endif  // BUCKET_MOO_EMULATION_CLOCK_HPP
