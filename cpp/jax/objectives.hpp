// Which objective each row stands for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bucket_moo/limits.hpp"
#include "jax/buffers.hpp"

namespace bucket_moo::jax {

/// [R] as the kernels take them.
inline std::vector<int> objectives_of(ffi::Span<const std::int64_t> objective, std::int64_t rows) {
  require(static_cast<std::int64_t>(objective.size()) == rows && rows > 0, "objective must be [", rows, "]; got [",
          objective.size(), "]");
  for (const std::int64_t number : objective) {
    require(number >= 0 && number < kMaxObjectives, "at most ", kMaxObjectives, " objectives are supported");
  }
  return {objective.begin(), objective.end()};
}

/// They are numbered in the order of their first rows, so that none is missing.
inline std::int64_t objective_count(const std::vector<int>& objective) {
  return *std::max_element(objective.begin(), objective.end()) + 1;
}

}  // namespace bucket_moo::jax
