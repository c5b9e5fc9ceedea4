// The mean of sparse gradients, which have no Gramian worth taking.
#pragma once

#include <ATen/core/Tensor.h>

#include "c10d_collective/all_gather.hpp"

namespace bucket_moo {

/// Replaces `gradient` (sparse COO) by the mean over all ranks, as DDP does, and says so once. Collective: three
/// all-gathers. Waits for the device, if it is on one: ranks may hold any number of rows.
void reduce_sparse_mean(at::Tensor gradient, int rank, int world, const AllGather& all_gather);

}  // namespace bucket_moo
