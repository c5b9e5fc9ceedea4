// What ranks make sure of that hold other pieces of the same model.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>

#include "collective/host_all_gather.hpp"

namespace bucket_moo {

/// The ranks of a model-parallel group: each holds another piece of one model, and belongs to the data-parallel group
/// of those that hold the same. All of these data-parallel groups make the same calls.
class ModelPieces {
 public:
  /// `all_gather`: over these ranks.
  ModelPieces(int rank, int size, HostAllGather all_gather)
      : rank_(rank), size_(size), all_gather_(std::move(all_gather)) {}

  int rank() const { return rank_; }
  int size() const { return size_; }

  /// Calls the function, which says what this rank's data-parallel group does, as a number that is the same on all of
  /// its ranks and raises AgreedError on all of them alike. Raises AgreedError on the ranks of all data-parallel
  /// groups if one of these did, or if their numbers differ.
  void agree(const std::function<std::uint64_t()>& part);

 private:
  const int rank_;
  const int size_;
  const HostAllGather all_gather_;
};

}  // namespace bucket_moo
