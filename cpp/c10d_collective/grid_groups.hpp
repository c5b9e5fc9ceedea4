// The process groups of a rank on a grid of ranks.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace bucket_moo {

/// Both number their ranks in the order of the grid. Null: nobody else.
struct GridGroups {
  c10::intrusive_ptr<c10d::ProcessGroup> across;  ///< the ranks that may have other objectives
  c10::intrusive_ptr<c10d::ProcessGroup> inside;  ///< the ranks that share this one's objective
};

}  // namespace bucket_moo
