// What a method with a memory (GradVac, smoothing) carries from step to step for one bucket.
#pragma once

#include <string>
#include <vector>

#include "bucket_moo/method.hpp"
#include "engine/bucket_record.hpp"

namespace bucket_moo {

/// Whether the method has a memory at all.
bool has_memory(const Method& method);

/// Raises ValueError if the saved state names an objective twice or has a wrong number of values.
void check_saved(const Method& method, const SavedSolverState& saved);

/// Raises ValueError if `name` is not null: a parameter that is in two saved buckets.
void check_distinct(const std::string* name);

/// In host memory, indexed by the names of objectives, so that it survives objectives that come, go and change places.
///
/// Deterministic: ranks that make the same calls hold the same bits. For N objectives it holds up to N (N + 2) doubles.
class SolverMemory {
 public:
  /// `method`: says how the memory is laid out; its pointers are not used.
  explicit SolverMemory(const Method& method) : method_(method) {}

  /// Of check_saved().
  SolverMemory(const Method& method, const SavedSolverState& saved)
      : method_(method), objectives_(saved.objectives), values_(saved.values) {}

  SolverMemory clone() const { return *this; }

  /// The state as solve() takes it for these objectives; zeros where it has not met them.
  std::vector<double> load(const std::vector<std::string>& objectives);

  /// Puts back what solve() made of it. Other objectives keep what they have.
  void store(const std::vector<std::string>& objectives, const std::vector<double>& values);

  const std::vector<std::string>& objectives() const { return objectives_; }  ///< [N]
  const std::vector<double>& values() const { return values_; }               ///< [state_size(method, N)]

 private:
  std::vector<int> places(const std::vector<std::string>& objectives);
  void copy(const std::vector<double>& from, const std::vector<int>& from_place, std::vector<double>& to,
            const std::vector<int>& to_place) const;

  Method method_;
  std::vector<std::string> objectives_;
  std::vector<double> values_;
};

}  // namespace bucket_moo
