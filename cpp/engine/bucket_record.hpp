// What reports and saved states know of buckets: plain values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "collective/moo_collective.hpp"
#include "collective/sketch_options.hpp"
#include "engine/bucket_id.hpp"
#include "engine/reduction.hpp"
#include "kernels/rows.hpp"

namespace bucket_moo {

/// What one bucket's last reduction was.
struct BucketRecord {
  std::int64_t step = 0;
  std::int64_t index = 0;               ///< its place in that step
  std::vector<std::string> parameters;  ///< titles of the parameters it holds
  std::string group;                    ///< that these share weights with; empty: the bucket
  std::int64_t numel = 0;
  DType dtype = DType::float32;
  std::vector<std::string> objectives;  ///< [K]
  std::vector<std::int64_t> rows;       ///< [K] that each objective's gradient is the mean of
  int passes = 1;                       ///< of the step
  std::int64_t width = 0;               ///< columns of the sketches that the Gramian is from; 0: it is exact
  std::int64_t solved_step = 0;         ///< the step whose gradients `result` is from; before `step` for kept weights
  BucketSolution result;
};

/// The records of a bucket's last reduction: one for each of its parts that have weights of their own.
struct BucketRecords {
  std::int64_t step = 0;
  std::int64_t index = 0;
  std::vector<BucketRecord> parts;
};

/// What is known of a reduction before it is done.
inline BucketRecord record_of(const PlacedReduction& call, const SketchOptions& sketch) {
  BucketRecord record;
  record.step = call.step;
  record.index = call.index;
  record.parameters = titles_of(call.bucket);
  record.numel = call.gradient().numel();
  record.dtype = call.dtype();
  record.width = sketch.width_for(record.numel);
  record.solved_step = call.step;
  return record;
}

/// Totals since the engine was made.
struct Counters {
  std::int64_t buckets = 0;    ///< buckets reduced
  std::int64_t nonfinite = 0;  ///< of those, how many fell back to the mean for a NaN or Inf
  std::int64_t sparse = 0;     ///< sparse buckets, which are averaged
  // Bytes of gradients and Gramians that this rank has sent. On the host alone.
  std::int64_t sent_across = 0;  ///< to ranks across the grid; without one, to all ranks
  std::int64_t sent_inside = 0;  ///< to those that share its objective there
};

/// What a method carries from step to step for one bucket: the same on every rank.
struct SavedSolverState {
  std::vector<std::string> parameters;  ///< names of the parameters that the bucket holds
  std::vector<std::string> objectives;  ///< [N] all that the bucket has ever met
  std::vector<double> values;           ///< [state_size(method, N)], as solve() lays it out
};

}  // namespace bucket_moo
