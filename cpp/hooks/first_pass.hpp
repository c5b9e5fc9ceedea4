// The gradients of a DDP module's first backward pass, kept until its buckets are what they stay.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <optional>
#include <string>
#include <utility>

#include "engine/bucket_id.hpp"
#include "engine/engine.hpp"

namespace bucket_moo {

/// DDP rebuilds its buckets after its first backward pass, and what was put aside for the old ones would be lost to the
/// new ones. Where that pass leaves its step open, each rank therefore keeps its gradients, by parameter, and brings
/// them in the next pass, ahead of its own.
class FirstPass {
 public:
  bool is_kept() const { return options_.has_value(); }
  const PassOptions& options() const { return *options_; }

  /// A pass whose gradients are to be kept.
  void begin(PassOptions options) { options_ = std::move(options); }

  /// Keeps what is in a dense bucket.
  void keep(const BucketId& bucket, const at::Tensor& buffer);

  /// What was kept of a bucket's parameters, in their order, like `buffer`; zeros where nothing was.
  at::Tensor row_of(const BucketId& bucket, const at::Tensor& buffer) const;

  void forget();

 private:
  std::optional<PassOptions> options_;
  std::map<std::string, at::Tensor> gradients_;  // by the name of the parameter
};

}  // namespace bucket_moo
