// What methods with a memory (GradVac, smoothing) carry from step to step, for every bucket.
#pragma once

#include <string>
#include <vector>

#include "bucket_moo/method.hpp"
#include "hooks/parameter_owners.hpp"

namespace bucket_moo {

/// One bucket's state in the form that is saved: plain, the same on every rank.
struct SavedSolverState {
  std::vector<std::string> parameters;  ///< labels of the parameters that the bucket holds
  std::vector<std::string> objectives;  ///< [N] all that the bucket has ever met
  std::vector<double> values;           ///< [state_size(method, N)], as solve() lays it out
};

/// Raises ValueError if the saved state names an objective twice or has a wrong number of values.
void check_saved(const Method& method, const SavedSolverState& saved);

/// Raises ValueError if `label` is not null: a parameter that is in two saved buckets.
void check_distinct(const std::string* label);

/// Solver states in host memory, by the parameters of a bucket (see ParameterOwners) and indexed by objective names, so
/// that they survive objectives that come, go and change places.
///
/// Deterministic: ranks that make the same calls hold the same bits. Not thread-safe. A state of N objectives holds up
/// to N (N + 2) doubles.
class SolverStates {
 public:
  explicit SolverStates(const Method& method) : method_(method) {}

  /// Doubles a bucket's state of k objectives has; 0 for methods without a memory.
  std::size_t size(std::size_t k) const;

  /// The state of the bucket that holds `parameters`, as solve() takes it for these objectives; zeros where fresh.
  std::vector<double> load(const std::vector<BucketParameter>& parameters, const std::vector<std::string>& objectives);

  /// Puts back what solve() made of it. Other objectives of the bucket keep what they have.
  void store(const std::vector<BucketParameter>& parameters, const std::vector<std::string>& objectives,
             const std::vector<double>& values);

  /// All states, ordered by their first labels.
  std::vector<SavedSolverState> save() const;

  /// Replaces all states. ValueError: a parameter in two buckets, an objective twice, or a wrong number of values.
  void restore(const std::vector<SavedSolverState>& saved);

 private:
  struct State {
    std::vector<std::string> objectives;
    std::vector<double> values;  // [size(objectives)]
  };

  State& state_of(const std::vector<BucketParameter>& parameters);
  std::vector<int> places(State& state, const std::vector<std::string>& objectives) const;
  void copy(const std::vector<double>& from, const std::vector<int>& from_place, std::vector<double>& to,
            const std::vector<int>& to_place) const;

  Method method_;
  ParameterOwners<State> owners_;
};

}  // namespace bucket_moo
