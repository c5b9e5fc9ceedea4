// What the tensors of a reduction must be.
#pragma once

#include <c10/core/Device.h>

#include "engine/reduction.hpp"

namespace bucket_moo {

/// Raises ValueError or TypeError, naming the argument, unless the tensors can be reduced on `device`, as rank `rank`
/// of `world`. Only a DDP bucket may be sparse.
void check_arguments(const Reduction& reduction, c10::Device device, int rank, int world);

}  // namespace bucket_moo
