// What the engine is asked to do with one bucket.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/util/intrusive_ptr.h>

#include <cstdint>

#include "bucket_moo/objective_table.hpp"
#include "engine/bucket_id.hpp"
#include "torch_types/dtype.hpp"

namespace bucket_moo {

using FuturePtr = c10::intrusive_ptr<c10::ivalue::Future>;

struct Reduction {
  Operation operation = Operation::invalid;
  at::Tensor output = {};  ///< where the result goes; all but reduce_scatter read it too
  at::Tensor input = {};   ///< of reduce_scatter alone
  BucketId bucket = {};
  /// Bytes of other ranks' gradients to hold at a time, for what is larger is exchanged in pieces. 0: all of them.
  std::int64_t tile_limit = 0;

  /// What holds this rank's gradient.
  const at::Tensor& gradient() const { return operation == Operation::reduce_scatter ? input : output; }
  DType dtype() const { return dtype_of(gradient().scalar_type(), "a bucket"); }
};

/// A reduction at its place among the others, as a backend takes it.
struct PlacedReduction : Reduction {
  std::int64_t step = 0;
  std::int64_t index = 0;   ///< in its step, from 0
  StepRecord record = {};   ///< of its step, where it is the first one there
  c10::IValue result = {};  ///< what the Future is to hold

  bool starts_step() const { return index == 0; }
};

}  // namespace bucket_moo
