// Numbers for names, the same on every rank and device.
//
// Source: FNV-1a with 64 bits, http://www.isthe.com/chongo/tech/comp/fnv/ (Fowler, Noll, Vo).
#ifndef BUCKET_MOO_HASH_HPP
#define BUCKET_MOO_HASH_HPP

#include <bucket_moo/config.hpp>
#include <cstddef>
#include <cstdint>

namespace bucket_moo {

inline constexpr std::uint64_t kEmptyHash = 0xcbf29ce484222325u;  ///< of no letters

/// The hash of what `hash` is of, with one more letter.
BUCKET_MOO_HD constexpr std::uint64_t hash_letter(std::uint64_t hash, char letter) {
  return (hash ^ static_cast<unsigned char>(letter)) * 0x100000001b3u;
}

/// \param text  ends with a zero
BUCKET_MOO_HD constexpr std::uint64_t hash_text(const char* text) {
  std::uint64_t hash = kEmptyHash;
  for (; *text != '\0'; ++text) hash = hash_letter(hash, *text);
  return hash;
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_HASH_HPP
