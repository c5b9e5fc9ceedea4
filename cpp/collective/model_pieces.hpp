// What ranks make sure of that hold other pieces of the same model.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "collective/persistent_buffer.hpp"
#include "collective/transport.hpp"

namespace bucket_moo {

/// The ranks of a model-parallel group: each holds another piece of one model, and belongs to the data-parallel group
/// of those that hold the same. All of these data-parallel groups make the same calls.
class ModelPieces {
 public:
  explicit ModelPieces(std::shared_ptr<Transport> transport) : transport_(std::move(transport)) {}

  int rank() const { return transport_->rank(); }

  /// Calls the function, which says what this rank's data-parallel group does, as a number that is the same on all of
  /// its ranks and raises AgreedError on all of them alike. Raises AgreedError on the ranks of all data-parallel
  /// groups if one of these did, or if their numbers differ.
  void agree(const std::function<std::uint64_t()>& part);

 private:
  const std::shared_ptr<Transport> transport_;
  PersistentBuffer said_;
};

}  // namespace bucket_moo
