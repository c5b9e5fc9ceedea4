// The sums of a bucket's rows by objective, while its step goes on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "collective/persistent_buffer.hpp"
#include "collective/sections.hpp"
#include "collective/sharded_bucket.hpp"
#include "collective/step_objectives.hpp"
#include "kernels/rows.hpp"

namespace bucket_moo {

/// A sum for every objective: of this rank's shard of the bucket, and of the tail. In float32, or float64 for float64
/// gradients. Memory grows with the objectives that come up and is kept from step to step.
class ObjectiveTile {
 public:
  /// Empties it, for a bucket of these sizes and this type.
  void begin(const ShardedBucket& bucket);
  /// Whether it was begun for a bucket like this one.
  bool fits(const ShardedBucket& bucket) const;

  /// The rows that are added from now on are those of `pass`, which must stay.
  /// `norms`: the parts whose rows' norms are taken too, which must stay; nullptr: none are.
  void begin_pass(const PassRows& pass, const Sections* norms = nullptr);
  /// Adds a row of every rank: elements [begin, begin + rows.size) of the shard.
  void add_to_shard(const Rows& rows, std::int64_t begin);
  /// The same for the whole tail.
  void add_to_tail(const Rows& rows);
  void end_pass();

  /// How many passes were added since begin().
  int passes() const { return passes_; }
  std::int64_t shard_size() const { return shard_size_; }
  std::int64_t tail_size() const { return tail_size_; }

  /// [K] what turns the sums into means; 0 where there is none. `objectives`: of the whole step.
  std::vector<double> close(const StepObjectives& objectives);

  /// [parts, K] after close(): RowNorms::squares of this rank's shard, and of the tail. `parts`: as in begin_pass().
  std::vector<double> shard_squares(std::span<const double> shares, int parts) const;
  std::vector<double> tail_squares(std::span<const double> shares, int parts) const;

  // After close(): the sums as rows, [K] of elements [begin, begin + size) of the shard, or of the tail. Valid until
  // the next call.
  Rows shard(std::int64_t begin, std::int64_t size);
  Rows tail();

  std::size_t capacity() const;

 private:
  struct Sum {
    PersistentBuffer memory;
    double unit = 0.0;                  ///< 0: nothing was added yet, and the memory holds anything
    std::vector<double> shard_squares;  ///< [parts] of the rows, in that unit; empty: none were taken
    std::vector<double> tail_squares;
  };

  void add(const Rows& rows, std::size_t offset);
  ObjectiveMap map_of_pass() const;
  double decay(std::size_t k) const;
  std::vector<double> squares(std::vector<double> Sum::* which, std::span<const double> shares, int parts) const;
  std::size_t tail_offset() const;
  Rows rows_at(std::size_t offset, std::int64_t size);

  std::vector<Sum> sums_;          // as many as a step ever had
  std::size_t k_ = 0;              // of this step
  std::vector<const void*> rows_;  // of what rows_at() returned
  const PassRows* pass_ = nullptr;
  const Sections* norms_ = nullptr;
  std::vector<double> shard_squares_;  // [parts, K] of this pass
  std::vector<double> tail_squares_;
  int passes_ = 0;
  std::int64_t shard_size_ = 0;
  std::int64_t tail_size_ = 0;
  DType dtype_ = DType::float32;  // of the sums
};

/// Writes sum_k weights[k] shares[k] sums[k] to `out`, of `dtype`. A sum of share 0 is nowhere, and not read.
void combine_sums(const Rows& sums, std::span<const double> shares, std::span<const double> weights, ZeroRows zero_rows,
                  void* out, DType dtype);

}  // namespace bucket_moo
