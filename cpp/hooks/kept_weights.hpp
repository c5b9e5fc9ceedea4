// Weights that serve for more than the step they were solved in.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "collective/moo_collective.hpp"
#include "hooks/parameter_owners.hpp"

namespace bucket_moo {

/// What was solved for a bucket, and when.
struct KeptWeights {
  std::vector<std::string> objectives;  ///< [K] whose weights these are
  std::int64_t step = 0;
  BucketSolution solution;
};

/// Whether a step falls into another period of `every` steps, counted from step 1, than an earlier one.
inline bool is_due(std::int64_t step, std::int64_t solved, std::int64_t every) {
  return (step - 1) / every != (solved - 1) / every;
}

/// By the parameters that a bucket holds. Buckets that DDP rebuilds start afresh. Not thread-safe.
class KeptWeightsOfBuckets {
 public:
  /// Null if there are none for exactly these objectives.
  const KeptWeights* find(const std::vector<BucketParameter>& parameters,
                          const std::vector<std::string>& objectives) const {
    const auto found = kept_.find(labels(parameters));
    return found != kept_.end() && found->second.objectives == objectives ? &found->second : nullptr;
  }

  void keep(const std::vector<BucketParameter>& parameters, KeptWeights weights) {
    kept_.insert_or_assign(labels(parameters), std::move(weights));
  }

  void clear() { kept_.clear(); }

 private:
  static std::vector<std::string> labels(const std::vector<BucketParameter>& parameters) {
    std::vector<std::string> all;
    for (const BucketParameter& parameter : parameters) {
      all.push_back(parameter.label);
    }
    return all;
  }

  std::map<std::vector<std::string>, KeptWeights> kept_;
};

}  // namespace bucket_moo
