// Gradients that were reduced and then kept, so that the next backward pass reduces them a second time.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

namespace bucket_moo {

/// Watches whether the gradients of a DDP module are zeroed (or None) between two backward passes that reduce them.
/// Where they are not, a bucket holds what was reduced before plus the new local gradients. DDP's mean makes the right
/// sum of that; weights that depend on the gradients do not.
///
/// From its first reduction on, a hook of ours on every parameter's AccumulateGrad node looks at `.grad` before the new
/// gradient is added. Where it is None, as zero_grad() leaves it, that is all; zeros are read. On a device nobody waits
/// for what is there, so a single parameter is looked at, and the answer comes a pass later.
///
/// Thread-safe. Stops looking once it has found something.
class KeptGradients {
 public:
  KeptGradients();
  ~KeptGradients();

  /// A dense bucket that is about to be reduced: the gradients of `parameters`, one after the other, in `buffer`.
  /// `starts_pass`: it is the first one of its backward pass. Returns the place of a parameter whose gradient was
  /// reduced before and kept. Of all calls, one at most does.
  std::optional<std::size_t> find(const at::Tensor& buffer, const std::vector<at::Tensor>& parameters,
                                  bool starts_pass);

 private:
  class Watch;
  class BeforeAccumulation;
  using WeakTensorImpl = c10::weak_intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>;

  struct Watched {
    WeakTensorImpl identity;  // addresses are used again
    std::shared_ptr<Watch> watch;
  };

  Watch& watch(const at::Tensor& parameter);

  std::mutex mutex_;  // guards what follows
  std::unordered_map<const void*, Watched> watched_;
  std::int64_t passes_ = 0;
  bool is_done_ = false;
};

}  // namespace bucket_moo
