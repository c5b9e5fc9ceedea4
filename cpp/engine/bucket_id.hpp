// What a bucket is known by.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bucket_moo/hash.hpp"

namespace bucket_moo {

/// A parameter of a bucket.
struct BucketParameter {
  std::string name;        ///< its own, and the same for good
  std::int64_t numel = 0;  ///< 0: it is alone in its bucket
  std::string title = {};  ///< as reports show it; empty: not at all
};

/// The parameters that a bucket holds, one at least. Their names in this order are what it is known by: neither an
/// index nor an address is, because DDP rebuilds its buckets and equal transformer blocks have equal sizes.
using BucketId = std::vector<BucketParameter>;

inline std::vector<std::string> names_of(const BucketId& bucket) {
  std::vector<std::string> names;
  for (const BucketParameter& parameter : bucket) {
    names.push_back(parameter.name);
  }
  return names;
}

inline std::vector<std::string> titles_of(const BucketId& bucket) {
  std::vector<std::string> titles;
  for (const BucketParameter& parameter : bucket) {
    if (!parameter.title.empty()) {
      titles.push_back(parameter.title);
    }
  }
  return titles;
}

/// A number for the names, the same on every rank.
inline std::uint64_t hash_of(const BucketId& bucket) {
  std::uint64_t hash = kEmptyHash;
  for (const BucketParameter& parameter : bucket) {
    for (const char letter : parameter.name) {
      hash = hash_letter(hash, letter);
    }
  }
  return hash;
}

}  // namespace bucket_moo
