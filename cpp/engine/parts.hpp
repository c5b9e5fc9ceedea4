// Buckets that have parts with weights of their own: what the backends have in common.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "collective/sections.hpp"
#include "engine/engine_options.hpp"
#include "engine/reduction.hpp"

namespace bucket_moo {

/// A part for each parameter: where they lie in what this rank reduces, whose results go to `shard_out` and `tail_out`.
/// `grouping`: knows which parameters are copies, which count where `piece`, this rank's of the model, is the first.
Sections sections_of(const PlacedReduction& call, const std::byte* shard_out, std::int64_t shard_size,
                     const std::byte* tail_out, std::int64_t tail_size, const Grouping& grouping, int piece);

/// A number for what ranks with other pieces of the model must have alike in a call; `said`: with what is known beside
/// it.
std::uint64_t hash_of_call(const PlacedReduction& call, const std::string& said);

/// Whether scale_to_mean() follows a solve. The method `mean` counts all objectives anyway.
bool scales_to_mean(const EngineOptions& options);

}  // namespace bucket_moo
