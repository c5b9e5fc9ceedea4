// Gradients that DDP leaves alone when it ends a backward pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <utility>
#include <vector>

namespace bucket_moo {

/// With find_unused_parameters DDP does not touch `.grad` of a parameter that no rank has used in a pass. If earlier
/// passes of the step have, its answer is in the bucket all the same, and is written to `.grad` here, once DDP is done.
class LeftAlone {
 public:
  /// The bucket, reduced in place, of a pass that closes a step of several. To be called in its backward pass.
  void watch(const at::Tensor& buffer, const std::vector<at::Tensor>& parameters);

 private:
  struct Bucket {
    at::Tensor buffer;
    std::vector<at::Tensor> parameters;
  };
  using Buckets = std::vector<Bucket>;

  static void write(const Bucket& bucket);

  std::shared_ptr<Buckets> pass_;  // of the newest pass; its buckets are gone when they were written
};

}  // namespace bucket_moo
