// The rows of a bucket that stay on their rank while its step goes on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "collective/mapped_buffer.hpp"
#include "collective/objective_tile.hpp"
#include "collective/step_objectives.hpp"
#include "kernels/rows.hpp"

namespace bucket_moo {

/// What one rank has brought for a bucket of n elements in the passes of a step: a sum for each of its objectives, or,
/// where it is known beforehand what every row counts for, one sum of all of them. In float32, or float64 for float64
/// gradients. Nothing of it is sent.
class OwnRows {
 public:
  /// Empties it. `in_one_sum`: add_to_one() is to follow, else add().
  void begin(std::int64_t n, DType dtype, bool in_one_sum);
  bool fits(std::int64_t n, DType dtype) const { return n_ == n && dtype_ == dtype; }

  /// Adds this rank's row of `pass`, [n], to the sum of its objective.
  void add(const void* row, const PassRows& pass, int rank);

  /// Adds coefficient times the row. One that is no normal float32 counts as 0, of which NaN and Inf are NaN.
  void add_to_one(const void* row, double coefficient);

  /// Writes the sum over objectives of weights[k] times this rank's share of g_k to `out`, [n] of the bucket's dtype.
  /// In one sum `weights` are not looked at, and its memory is given back.
  void combine(const StepObjectives& objectives, std::span<const double> weights, ZeroRows zero_rows, void* out);

  std::size_t capacity() const { return by_objective_.capacity() + one_.capacity(); }

 private:
  ObjectiveTile by_objective_;
  MappedBuffer one_;
  bool in_one_sum_ = false;
  bool any_ = false;  // whether something was added to the one sum
  std::int64_t n_ = 0;
  DType dtype_ = DType::float32;  // of the rows
};

}  // namespace bucket_moo
