// An all-gather as its users see it, whatever it goes over.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace bucket_moo {

/// Fills blocks[r], of the first dimension [W] of `blocks` (contiguous), with rank r's, of which the own one is there.
/// Collective.
using AllGather = std::function<void(const at::Tensor& blocks)>;

}  // namespace bucket_moo
