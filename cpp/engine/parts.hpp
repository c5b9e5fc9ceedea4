// Buckets that have parts with weights of their own: what the backends have in common.
#pragma once

#include <cstddef>
#include <cstdint>

#include "collective/sections.hpp"
#include "engine/engine_options.hpp"
#include "engine/reduction.hpp"

namespace bucket_moo {

/// A part for each parameter: where they lie in what this rank reduces, whose results go to `shard_out` and `tail_out`.
Sections sections_of(const PlacedReduction& call, const std::byte* shard_out, std::int64_t shard_size,
                     const std::byte* tail_out, std::int64_t tail_size);

/// Whether scale_to_mean() follows a solve. The method `mean` counts all objectives anyway.
bool scales_to_mean(const EngineOptions& options);

}  // namespace bucket_moo
