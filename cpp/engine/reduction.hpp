// What the engine is asked to do with one bucket.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/util/intrusive_ptr.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "bucket_moo/objective_table.hpp"
#include "engine/bucket_id.hpp"
#include "torch_types/dtype.hpp"

namespace bucket_moo {

using FuturePtr = c10::intrusive_ptr<c10::ivalue::Future>;

/// Where the parameters of a bucket lie. In coordinates of the caller's, in which the result of this rank, `output`,
/// begins at `begin`: elements of a flat bucket, or of a shard that has a piece of every parameter. What lies in no
/// parameter is padding, and zero.
struct ParameterPlaces {
  std::vector<std::pair<std::int64_t, std::int64_t>> ranges;  ///< beginning and size of each; empty: one after another
  std::int64_t begin = 0;
};

struct Reduction {
  Operation operation = Operation::invalid;
  at::Tensor output = {};  ///< where the result goes; all but reduce_scatter read it too
  at::Tensor input = {};   ///< of operations that scatter
  BucketId bucket = {};
  ParameterPlaces places = {};
  /// Bytes of other ranks' gradients to hold at a time, for what is larger is exchanged in pieces. 0: all of them.
  std::int64_t tile_limit = 0;
  /// The pass of the step that the gradient is of, from 0; nothing: the newest.
  std::optional<int> of_pass = {};
  /// Where one problem is solved for all buckets: whether the Future is done once the rows are taken, for a caller that
  /// cannot wait for the last bucket. The result is in `output` behind Engine::end_compared_pass().
  bool is_late = false;

  /// What holds this rank's gradient.
  const at::Tensor& gradient() const { return scatters() ? input : output; }
  /// Whether the result is a shard.
  bool scatters() const {
    return operation == Operation::reduce_scatter || operation == Operation::reduce_scatter_inside;
  }
  DType dtype() const { return dtype_of(gradient().scalar_type(), "a bucket"); }
};

/// Steps follow one another in lines, which do not know of each other: that of a hook, and one of every bucket of
/// direct calls, by its hash.
inline constexpr std::uint64_t kHookLine = 0;

/// What the weights of an objective's rows are to add up to, over all ranks and passes of a step.
struct ObjectiveTotal {
  ObjectiveName objective;
  double total = 0.0;
};
using ObjectiveTotals = std::vector<ObjectiveTotal>;

/// A reduction at its place among the others, as a backend takes it.
struct PlacedReduction : Reduction {
  std::uint64_t line = kHookLine;
  std::int64_t step = 0;
  int pass = 0;                                        ///< in its step, from 0
  bool leaves_open = false;                            ///< whether its step goes on with another pass
  std::int64_t index = 0;                              ///< in its pass, from 0
  std::shared_ptr<const ObjectiveTotals> totals = {};  ///< of its step, where they were given; else null
  StepRecord record = {};                              ///< of its pass, where it is the first one there
  c10::IValue result = {};                             ///< what the Future is to hold

  bool starts_pass() const { return index == 0; }
  /// Whether ranks first make sure that all of them make this call. Within a pass DDP sees to that by itself.
  bool is_compared() const { return starts_pass() || operation != Operation::ddp_bucket; }
  bool starts_step() const { return pass == 0 && starts_pass(); }
  /// Whether nothing was or is put aside for its step.
  bool is_alone_in_step() const { return pass == 0 && !leaves_open; }
};

}  // namespace bucket_moo
