// Gradients that DDP leaves alone when it ends a backward pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace bucket_moo {

/// With find_unused_parameters DDP does not touch `.grad` of a parameter that no rank has used in a pass. If earlier
/// passes of the step have, its answer is in the bucket all the same, and is written to `.grad` here, once DDP is done.
/// Whether DDP has touched a gradient the host knows: only for one that it has not does it wait for a device.
class LeftAlone {
 public:
  /// To be called when a pass begins, however the one before has ended.
  void begin_pass() { pass_.reset(); }
  /// The bucket, reduced in place, of a pass that closes a step of several. To be called in its backward pass.
  void watch(const at::Tensor& buffer, const std::vector<at::Tensor>& parameters);

 private:
  /// What changes when a gradient is written or replaced.
  struct Version {
    const void* tensor = nullptr;
    std::int64_t count = -1;  // -1: not counted
  };
  struct Bucket {
    at::Tensor buffer;
    std::vector<at::Tensor> parameters;
    std::vector<Version> before;  // of their gradients, when the bucket was handed over
  };
  using Buckets = std::vector<Bucket>;

  static Version version_of(const at::Tensor& gradient);
  static bool was_written(const at::Tensor& gradient, const Version& before);
  static void write(const Bucket& bucket);

  std::shared_ptr<Buckets> pass_;  // of the newest pass; its buckets are gone when they were written
};

}  // namespace bucket_moo
