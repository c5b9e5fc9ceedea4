#include "hooks/kept_gradients.hpp"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <utility>
#include <vector>

#if BUCKET_MOO_CUDA
#include <c10/core/Event.h>

#include "torch_types/device.hpp"
#endif

namespace bucket_moo {
namespace {

// Zeros are read in full in the first passes. Later a part of them, another one in each pass: what a training loop
// does, it does from the start.
constexpr std::int64_t kThoroughPasses = 4;
constexpr std::int64_t kGlance = 1 << 14;  // elements

std::int64_t numel_in_bucket(const at::Tensor& parameter) {
  return parameter.is_complex() ? 2 * parameter.numel() : parameter.numel();
}

/// Whether any of `n` real numbers is neither 0 nor -0. `Word`: as large as one of them.
template <class Word>
bool has_nonzero(const void* numbers, std::int64_t n) {
  const auto* const words = static_cast<const Word*>(numbers);
  constexpr std::int64_t kBlock = 1024;
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    Word any = 0;
    for (std::int64_t i = begin; i < std::min(n, begin + kBlock); ++i) {
      any |= words[i];
    }
    if (static_cast<Word>(any << 1) != 0) {  // without the sign
      return true;
    }
  }
  return false;
}

/// Whether any element is not zero, among those that the pass number `pass` looks at.
bool has_nonzero(const at::Tensor& gradient, std::int64_t pass) {
  const at::Tensor real = gradient.is_complex() ? at::view_as_real(gradient) : gradient;
  if (!real.is_non_overlapping_and_dense()) {
    return real.any().item<bool>();
  }
  const std::int64_t n = real.numel();
  const bool thorough = n <= kGlance || pass <= kThoroughPasses;
  const std::int64_t begin = thorough ? 0 : pass * kGlance % n;
  const std::int64_t count = thorough ? n : std::min(kGlance, n - begin);
  const auto size = static_cast<std::int64_t>(real.itemsize());
  const auto* const numbers = static_cast<const std::byte*>(real.const_data_ptr()) + begin * size;
  return size == 2   ? has_nonzero<std::uint16_t>(numbers, count)
         : size == 4 ? has_nonzero<std::uint32_t>(numbers, count)
                     : has_nonzero<std::uint64_t>(numbers, count);
}

}  // namespace

/// One parameter's gradient.
class KeptGradients::Watch {
 public:
  /// The next gradient is about to be added to `gradient`.
  void look(const at::Tensor& gradient) {
    const std::lock_guard lock(mutex_);
    if (!is_reduced_) {
      return;
    }
    if (!gradient.defined() || gradient.layout() != at::kStrided || !gradient.has_storage()) {
      is_reduced_ = false;
    } else if (gradient.is_cpu()) {
      is_reduced_ = has_nonzero(gradient, pass_);
    } else {
      is_reduced_ = false;
      ask(gradient);
    }
  }

  /// The gradient, the elements of `bucket` from `begin` to `end`, is about to be reduced. Returns whether it was
  /// before.
  bool reduce(const at::Tensor& bucket, std::int64_t begin, std::int64_t end, std::int64_t pass) {
    const std::lock_guard lock(mutex_);
    // A rank that has run out of data, or does not use the parameter, adds nothing to it and hands over zeros.
    const bool was_reduced =
        bucket.is_cpu() ? is_reduced_ && has_nonzero(bucket.slice(0, begin, end), pass_) : take_answer();
    is_reduced_ = true;
    pass_ = pass;
    return was_reduced;
  }

  std::atomic<bool> is_hooked = false;  // a node tells it

 private:
#if BUCKET_MOO_CUDA
  void ask(const at::Tensor& gradient) {
    const c10::Device device = gradient.device();
    const KernelDeviceGuard guard(device);
    if (answer_.defined() || is_capturing(current_stream(device))) {
      return;
    }
    const at::NoGradGuard no_grad;
    answer_ = gradient.any().to(at::TensorOptions().device(at::kCPU), /*non_blocking=*/true);
    answered_.emplace(device.type());
    answered_->record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
  }

  bool take_answer() {
    if (!answer_.defined()) {
      return false;
    }
    const BesideCaptures beside;  // this pass may be captured itself
    if (!answered_->query()) {
      return false;
    }
    return std::exchange(answer_, at::Tensor()).item<bool>();
  }

  at::Tensor answer_;  // on its way to the host, or undefined
  std::optional<c10::Event> answered_;
#else
  void ask(const at::Tensor&) {}
  bool take_answer() { return false; }
#endif

  std::mutex mutex_;
  bool is_reduced_ = false;  // the gradient, as far as it is not zero, holds what was reduced
  std::int64_t pass_ = 0;    // that reduced it
};

/// Runs where a gradient is added to `.grad`, and nowhere else: not for torch.autograd.grad().
class KeptGradients::BeforeAccumulation final : public torch::autograd::FunctionPreHook {
 public:
  BeforeAccumulation(WeakTensorImpl parameter, const std::shared_ptr<Watch>& watch)
      : parameter_(std::move(parameter)), watch_(watch) {
    watch->is_hooked = true;
  }

  ~BeforeAccumulation() override {
    if (const auto watch = watch_.lock()) {
      watch->is_hooked = false;  // the node goes with the module; another one may come for the same parameter
    }
  }

  torch::autograd::variable_list operator()(const torch::autograd::variable_list& gradients) override {
    if (const auto watch = watch_.lock()) {
      if (const auto parameter = parameter_.lock()) {
        watch->look(at::Tensor(parameter).grad());
      }
    }
    return gradients;
  }

  /// Nothing to compile. torch says itself that compiled autograd does not go with DDP's reducer.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs&) const override {}

 private:
  const WeakTensorImpl parameter_;
  const std::weak_ptr<Watch> watch_;
};

KeptGradients::KeptGradients() = default;
KeptGradients::~KeptGradients() = default;

std::optional<std::size_t> KeptGradients::find(const at::Tensor& buffer, const std::vector<at::Tensor>& parameters,
                                               bool starts_pass) {
  const std::lock_guard lock(mutex_);
  if (is_done_) {
    return std::nullopt;
  }
  passes_ += starts_pass;
  const std::size_t looked_at = buffer.is_cpu() ? parameters.size() : std::size_t{starts_pass};
  std::optional<std::size_t> found;
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < looked_at; ++i) {
    const std::int64_t end = begin + numel_in_bucket(parameters[i]);
    if (watch(parameters[i]).reduce(buffer, begin, end, passes_)) {
      found = i;
    }
    begin = end;
  }
  if (found) {
    is_done_ = true;
    watched_.clear();
  }
  return found;
}

KeptGradients::Watch& KeptGradients::watch(const at::Tensor& parameter) {
  const void* const address = parameter.unsafeGetTensorImpl();
  const auto known = watched_.find(address);
  if (known != watched_.end() && !known->second.identity.expired() && known->second.watch->is_hooked) {
    return *known->second.watch;
  }
  const auto fresh = std::make_shared<Watch>();
  const WeakTensorImpl identity(parameter.getIntrusivePtr());
  if (const auto node = torch::autograd::impl::grad_accumulator(parameter)) {
    node->add_pre_hook(std::make_unique<BeforeAccumulation>(identity, fresh));
  }
  watched_.insert_or_assign(address, Watched{identity, fresh});
  return *fresh;
}

}  // namespace bucket_moo
