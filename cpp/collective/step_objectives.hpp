// Which objective each row of a step stands for, over all of its passes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "bucket_moo/objective_table.hpp"

namespace bucket_moo {

/// The rows of one pass: one of every rank.
struct PassRows {
  std::vector<int> objective;       ///< [W] the number of each rank's objective
  std::vector<double> coefficient;  ///< [W] each rank's weight, in the unit of its objective; 0: left out
  std::vector<double> unit;         ///< [K so far] weights are multiples of these; 0: none but left out so far
};

/// Objectives of a step, numbered in the order in which they come up: by pass, then by rank. An objective's gradient is
/// the mean of its rows over ranks and passes, weighted. How often passes came and with which weights is known at the
/// end alone, so rows are added up first, in a unit of each objective's own: the first weight that came, or one that
/// is much larger. Sums of weights and of rows then neither overflow nor vanish, whatever weights are counted in.
class StepObjectives {
 public:
  /// The next pass. `records`: of all W ranks, in rank order, as read_objectives() has found them right.
  /// Raises AgreedError for more than kMaxObjectives objectives.
  void add_pass(std::span<const StepRecord> records);

  int passes() const { return static_cast<int>(passes_.size()); }
  const PassRows& pass(int number) const { return passes_.at(static_cast<std::size_t>(number)); }

  int k() const { return static_cast<int>(names_.size()); }
  const std::vector<std::string>& names() const { return names_; }
  /// [K] rows that each objective has had, those left out among them.
  const std::vector<std::int64_t>& rows() const { return rows_; }

  /// What turns objective k's sum, in `unit`, into its mean; 0 if it has no row.
  double share(std::size_t k, double unit) const;

 private:
  std::size_t number_of(const ObjectiveName& name);

  std::vector<PassRows> passes_;
  std::vector<std::string> names_;  // [K]
  std::vector<std::int64_t> rows_;  // [K]
  std::vector<double> unit_;        // [K] of the newest pass
  std::vector<double> total_;       // [K] sum of weights, in that unit
};

}  // namespace bucket_moo
