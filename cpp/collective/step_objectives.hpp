// Which objective each row of a step stands for, over all of its passes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "bucket_moo/limits.hpp"
#include "bucket_moo/objective_table.hpp"
#include "bucket_moo/pass_table.hpp"

namespace bucket_moo {

/// A PassTable that holds its memory.
struct PassRows {
  std::vector<int> objective;       ///< [W]
  std::vector<double> coefficient;  ///< [W]
  std::vector<double> unit;         ///< [K so far]
};

/// StepSums that hold their memory, and the rows of every pass.
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
  std::vector<std::int64_t> rows() const { return {rows_.begin(), rows_.begin() + header_.k}; }

  /// What the weights of objective k's rows add up to.
  double weight(std::size_t k) const { return unit_.at(k) * total_.at(k); }

  /// What turns objective k's sum, in `unit`, into its mean; 0 if it has no row.
  double share(std::size_t k, double unit) const;

  /// [K] sum over each objective's rows of share^2, what a row counts for in the mean.
  std::vector<double> squared_shares() const;

 private:
  std::vector<PassRows> passes_;
  std::vector<std::string> names_;  // [K]
  StepHeader header_;
  std::array<StepRecord, kMaxObjectives> record_;
  std::array<double, kMaxObjectives> unit_;
  std::array<double, kMaxObjectives> total_;
  std::array<std::int32_t, kMaxObjectives> rows_;
};

}  // namespace bucket_moo
