// What methods with a memory (GradVac, smoothing) carry from step to step, for every bucket.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bucket_moo/method.hpp"

namespace bucket_moo {

/// One bucket's state in the form that is saved: plain, the same on every rank.
struct SavedSolverState {
  std::vector<std::string> parameters;  ///< labels of the parameters that the bucket holds
  std::vector<std::string> objectives;  ///< [N] all that the bucket has ever met
  std::vector<double> values;           ///< [state_size(method, N)], as solve() lays it out
};

/// Solver states by bucket, found by the parameters a bucket holds and indexed by objective names, so that they survive
/// objectives that come, go and change places, and DDP's rebuilding of its buckets: every parameter belongs to the
/// state of the bucket that held it last, and a bucket that is new starts from a copy of the state that most of its
/// elements belong to (of several, the one met first in the order of its parameters). States that no parameter belongs
/// to any more are dropped.
///
/// Deterministic: ranks that make the same calls hold the same bits. Not thread-safe. A state of N objectives holds up
/// to N (N + 2) doubles.
class SolverStates {
 public:
  /// A parameter of a bucket; labels are distinct.
  struct Parameter {
    std::string label;
    std::int64_t numel = 0;
  };

  explicit SolverStates(const Method& method) : method_(method) {}

  /// Doubles a bucket's state of k objectives has; 0 for methods without a memory.
  std::size_t size(std::size_t k) const;

  /// The state of the bucket that holds `parameters`, as solve() takes it for these objectives; zeros where fresh.
  std::vector<double> load(const std::vector<Parameter>& parameters, const std::vector<std::string>& objectives);

  /// Puts back what solve() made of it. Other objectives of the bucket keep what they have.
  void store(const std::vector<Parameter>& parameters, const std::vector<std::string>& objectives,
             const std::vector<double>& values);

  /// All states, ordered by their first labels.
  std::vector<SavedSolverState> save() const;

  /// Replaces all states. ValueError: a parameter in two buckets, an objective twice, or a wrong number of values.
  void restore(const std::vector<SavedSolverState>& saved);

 private:
  struct State {
    std::vector<std::string> objectives;
    std::vector<double> values;  // [size(objectives)]
    std::size_t parameters = 0;  // that belong to it
  };
  using StatePtr = std::shared_ptr<State>;

  StatePtr state_of(const std::vector<Parameter>& parameters);
  StatePtr successor(const std::vector<Parameter>& parameters) const;
  std::vector<int> places(State& state, const std::vector<std::string>& objectives) const;
  void copy(const std::vector<double>& from, const std::vector<int>& from_place, std::vector<double>& to,
            const std::vector<int>& to_place) const;

  Method method_;
  std::map<std::string, StatePtr> owner_;  // by label
};

}  // namespace bucket_moo
