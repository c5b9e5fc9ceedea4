// Which rank stands for which objective in a step, as all ranks agreed.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/rows.hpp"

namespace bucket_moo {

/// Longest objective name in bytes of UTF-8; the records that ranks exchange have a fixed size.
inline constexpr std::size_t kMaxObjectiveName = 63;

/// A rank whose weight is this much smaller than the largest of its objective is left out, like one of weight 0.
inline constexpr double kSmallestShare = 0x1p-100;

/// What a rank tells the others at the start of a step. Sent as raw bytes, so every rank must run the same build.
struct StepRecord {
  std::array<char, kMaxObjectiveName + 1> objective{};  ///< zero-terminated name
  double weight = 1.0;                                  ///< weight of this rank inside its objective, >= 0
  std::int64_t step = 0;                                ///< counted by the state
  std::int64_t numel = 0;                               ///< elements of the step's first bucket
  std::int32_t dtype = 0;                               ///< DType of the step's first bucket
  std::int32_t operation = 0;                           ///< Operation of the step's first bucket
};
static_assert(std::is_trivially_copyable_v<StepRecord> && sizeof(StepRecord) == 96);

/// The kind of call a step starts with. `invalid`: the rank's arguments were refused; it only tells the others so.
enum class Operation : std::int32_t { ddp_bucket, all_reduce, reduce_scatter, invalid };

/// Objectives of a step, numbered by the lowest rank that has them.
struct ObjectiveTable {
  std::vector<std::string> names;  ///< [K]
  std::vector<int> objective;      ///< [W] objective of each rank
  std::vector<double> share;       ///< [W] weight of each rank over the sum of weights in its objective; 0: left out

  int k() const { return static_cast<int>(names.size()); }
  ObjectiveMap map() const { return {objective.data(), share.data(), k()}; }
};

/// Builds the table from the records of all W ranks, in rank order.
/// Raises ValueError, alike on every rank, if the ranks do not make the same call or name more than kMaxObjectives
/// objectives.
ObjectiveTable make_objective_table(std::span<const StepRecord> records);

}  // namespace bucket_moo
