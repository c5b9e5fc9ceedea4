// Counter-based randomness: a value depends on its key and index only, never on what was drawn before, so all ranks
// agree without talking and a step can be replayed.
//
// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (SplitMix64; its state is a
// counter), with Stafford's variant 13 of the mixing function. Permutation: Durstenfeld, "Algorithm 235", CACM 1964.
#ifndef BUCKET_MOO_RANDOM_HPP
#define BUCKET_MOO_RANDOM_HPP

#include <bucket_moo/config.hpp>
#include <cstdint>

namespace bucket_moo {

/// What a random choice may depend on.
struct RandomKey {
  std::uint64_t seed = 0;
  std::uint64_t step = 0;
  std::uint64_t bucket = 0;
};

/// A bijection of 64-bit words whose output looks random even for consecutive inputs.
BUCKET_MOO_HD BUCKET_MOO_ALWAYS_INLINE constexpr std::uint64_t mix_bits(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// The random stream number `stream` of a key.
class RandomStream {
 public:
  BUCKET_MOO_HD constexpr RandomStream(RandomKey key, std::uint64_t stream)
      : origin_(chain(chain(chain(chain(0, key.seed), key.step), key.bucket), stream)) {}

  /// The value at `position`: 64 random bits.
  BUCKET_MOO_HD BUCKET_MOO_ALWAYS_INLINE constexpr std::uint64_t bits(std::uint64_t position) const {
    return mix_bits(origin_ + (position + 1) * kGamma);
  }

  /// An integer in [0, bound), bound < 2^16. Its bias is below bound / 2^32.
  BUCKET_MOO_HD constexpr int below(std::uint64_t position, int bound) const {
    return static_cast<int>(((bits(position) >> 32) * static_cast<std::uint64_t>(bound)) >> 32);
  }

 private:
  static constexpr std::uint64_t kGamma = 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio, odd

  BUCKET_MOO_HD static constexpr std::uint64_t chain(std::uint64_t hash, std::uint64_t word) {
    return mix_bits((hash ^ word) + kGamma);
  }

  std::uint64_t origin_;
};

/// Writes a uniformly random order of 0, ..., n-1, n <= 256, that depends on (key, i) alone.
/// \param key seed, step and bucket
/// \param i   which permutation of the key; the methods use the objective's index
/// \param order [n], out
/// Cost: n - 1 draws. Runs in one thread.
template <class Index>
BUCKET_MOO_HD constexpr void permutation(RandomKey key, int i, int n, Index* order) {
  const RandomStream stream(key, static_cast<std::uint64_t>(i));
  for (int t = 0; t < n; ++t) order[t] = static_cast<Index>(t);
  for (int t = n - 1; t > 0; --t) {
    const int other = stream.below(static_cast<std::uint64_t>(t), t + 1);
    const Index moved = order[t];
    order[t] = order[other];
    order[other] = moved;
  }
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_RANDOM_HPP
