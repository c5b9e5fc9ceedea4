// A random linear map from gradients of n elements to sketches of a few columns, under which inner products keep their
// values on average: where each element goes, and with which sign. docs/sketch.md derives what is said here.
//
// The elements are cut into runs of `width`. In every run each element has a column of its own: its place in the run,
// XORed with a number that is drawn for the run. Hence two elements of one run never meet, and two of different runs
// meet with probability 1 / width. A column adds up its elements, each with a random sign.
//
// Source: Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", ICALP 2002 (CountSketch). A column
// that is a permutation within a run, instead of one drawn for every element, needs one draw a run and lets a machine
// read and add whole vectors; no pair of elements meets more often than there, so no variance is larger.
#ifndef BUCKET_MOO_SKETCH_HPP
#define BUCKET_MOO_SKETCH_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/random.hpp>
#include <cstdint>

namespace bucket_moo {

/// A sketch has a power of two of columns, from kMinSketchWidth to kMaxSketchWidth.
inline constexpr std::int64_t kMinSketchWidth = 64;
inline constexpr std::int64_t kMaxSketchWidth = std::int64_t{1} << 28;

BUCKET_MOO_HD constexpr bool is_sketch_width(std::int64_t width) {
  return width >= kMinSketchWidth && width <= kMaxSketchWidth && (width & (width - 1)) == 0;
}

/// One draw of the map, the same for everybody who has the key.
/// Element i goes to column (i % width) ^ flip(i / width), negated if bit i % 64 of signs(i / 64) is set.
class SketchMap {
 public:
  /// Elements that share a word of signs.
  static constexpr int kSignsPerWord = 64;

  /// \param key    seed, step and bucket
  /// \param width  is_sketch_width(width)
  BUCKET_MOO_HD constexpr SketchMap(const RandomKey& key, std::int64_t width)
      : signs_(key, kSignStream), flips_(key, kFlipStream), mask_(width - 1) {}

  BUCKET_MOO_HD BUCKET_MOO_ALWAYS_INLINE constexpr std::int64_t width() const { return mask_ + 1; }

  /// The signs of elements 64 * word, ..., 64 * word + 63, lowest bit first; a set bit negates.
  BUCKET_MOO_HD BUCKET_MOO_ALWAYS_INLINE constexpr std::uint64_t signs(std::int64_t word) const {
    return signs_.bits(static_cast<std::uint64_t>(word));
  }

  /// What the places of a run's elements are XORed with, in [0, width).
  BUCKET_MOO_HD BUCKET_MOO_ALWAYS_INLINE constexpr std::int64_t flip(std::int64_t run) const {
    return static_cast<std::int64_t>(flips_.bits(static_cast<std::uint64_t>(run)) >> 32) & mask_;
  }

 private:
  // Far from the streams that methods number by objectives.
  static constexpr std::uint64_t kSignStream = 0x5349474e00000000u;
  static constexpr std::uint64_t kFlipStream = 0x464c495000000000u;

  RandomStream signs_;
  RandomStream flips_;
  std::int64_t mask_;
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_SKETCH_HPP
