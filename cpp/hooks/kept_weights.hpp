// Weights that serve for more than the step they were solved in.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "hooks/parameter_owners.hpp"

namespace bucket_moo {

/// When buckets with a sketch are solved for. The others are in every step.
struct SolveSchedule {
  std::int64_t refresh_every = 1;  ///< a bucket's weights serve for so many steps
  bool lag = false;                ///< a step uses the weights that the one before it solved for

  /// Whether weights outlive their step.
  bool keeps_weights() const { return refresh_every > 1 || lag; }
};

/// Whether a step falls into another period of `every` steps, counted from step 1, than an earlier one.
inline bool is_due(std::int64_t step, std::int64_t solved, std::int64_t every) {
  return (step - 1) / every != (solved - 1) / every;
}

/// What is kept for buckets, by the parameters that they hold. Buckets that DDP rebuilds start afresh. Not thread-safe.
template <class Kept>
class KeptForBuckets {
 public:
  /// Null if there is nothing.
  Kept* find(const std::vector<BucketParameter>& parameters) {
    const auto found = kept_.find(labels(parameters));
    return found == kept_.end() ? nullptr : &found->second;
  }

  Kept& keep(const std::vector<BucketParameter>& parameters, Kept kept) {
    return kept_.insert_or_assign(labels(parameters), std::move(kept)).first->second;
  }

  const std::map<std::vector<std::string>, Kept>& all() const { return kept_; }

  void clear() { kept_.clear(); }

 private:
  static std::vector<std::string> labels(const std::vector<BucketParameter>& parameters) {
    std::vector<std::string> all;
    for (const BucketParameter& parameter : parameters) {
      all.push_back(parameter.label);
    }
    return all;
  }

  std::map<std::vector<std::string>, Kept> kept_;
};

}  // namespace bucket_moo
