// An all-gather of host memory as its users see it, whatever it goes over.
#pragma once

#include <cstddef>
#include <functional>
#include <span>

namespace bucket_moo {

/// Fills block r of `blocks`, of one equal block a rank, with rank r's, of which the own one is there. Collective.
using HostAllGather = std::function<void(std::span<std::byte> blocks)>;

}  // namespace bucket_moo
