// The names of the parameters in DDP's buckets.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <cstddef>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/bucket_id.hpp"

namespace bucket_moo {

/// What parameters are called. One that nobody has named is shown by its shape, and known by the place at which it was
/// first reduced ("#3" for the fourth): ranks meet their parameters in the same order, and so does a later run.
///
/// Thread-safe.
class ParameterNames {
 public:
  /// Names are distinct. What a parameter is known by stays what it was when it was first reduced.
  void set(const std::vector<std::pair<std::string, at::Tensor>>& named);

  BucketId bucket_of(const std::vector<at::Tensor>& parameters);

 private:
  using WeakTensorImpl = c10::weak_intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>;

  struct Known {
    WeakTensorImpl identity;  // addresses are used again
    std::string given;        // empty: none
    std::string name;         // empty: not reduced yet
  };

  Known& known(const at::Tensor& parameter);

  std::mutex mutex_;  // guards what follows
  std::unordered_map<const void*, Known> known_;
  std::size_t reduced_ = 0;  // parameters
};

}  // namespace bucket_moo
