#include "hooks/left_alone.hpp"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>

#include <cstdint>

namespace bucket_moo {
namespace {

constexpr std::int64_t kGlance = 256;  // elements

/// Whether the gradient lacks what is in `answer`, which is not zero: DDP has written all of it or nothing.
bool lacks(const at::Tensor& gradient, const at::Tensor& answer) {
  if (!gradient.defined()) {
    return true;
  }
  if (gradient.is_alias_of(answer)) {
    return false;
  }
  const bool is_plain = gradient.is_contiguous() && gradient.numel() > kGlance;
  const bool glance = is_plain && gradient.view({-1}).narrow(0, 0, kGlance).any().item<bool>();
  return !glance && !gradient.any().item<bool>();
}

}  // namespace

void LeftAlone::watch(const at::Tensor& buffer, const std::vector<at::Tensor>& parameters) {
  if (torch::autograd::get_current_graph_task_id() == -1) {
    return;  // a rank that has joined: it has no gradients
  }
  if (!pass_) {
    pass_ = std::make_shared<Buckets>();
    // DDP queues what ends its pass when the last bucket was handed over, hence after this: a callback that is queued
    // when callbacks run comes after that.
    torch::autograd::Engine::get_default_engine().queue_callback([pass = pass_] {
      torch::autograd::Engine::get_default_engine().queue_callback([pass] {
        for (const Bucket& bucket : *pass) {
          write(bucket);
        }
        pass->clear();
      });
    });
  }
  std::vector<Version> before;
  for (const at::Tensor& parameter : parameters) {
    before.push_back(version_of(parameter.mutable_grad()));
  }
  pass_->push_back({buffer, parameters, std::move(before)});
}

LeftAlone::Version LeftAlone::version_of(const at::Tensor& gradient) {
  if (!gradient.defined()) {
    return {};
  }
  return {gradient.unsafeGetTensorImpl(), gradient.is_inference() ? -1 : gradient._version()};
}

bool LeftAlone::was_written(const at::Tensor& gradient, const Version& before) {
  const Version now = version_of(gradient);
  return now.tensor != nullptr && (now.tensor != before.tensor || now.count != before.count);
}

void LeftAlone::write(const Bucket& bucket) {
  const at::NoGradGuard no_grad;
  std::int64_t begin = 0;
  auto before = bucket.before.begin();
  for (const at::Tensor& parameter : bucket.parameters) {
    const Version& version = *before++;
    const at::Tensor real = parameter.is_complex() ? at::view_as_real(parameter.detach()) : parameter.detach();
    const at::Tensor flat = bucket.buffer.narrow(0, begin, real.numel());
    begin += real.numel();
    at::Tensor& gradient = parameter.mutable_grad();
    if (!parameter.requires_grad() || was_written(gradient, version) || !lacks(gradient, flat) ||
        !flat.any().item<bool>()) {
      continue;
    }
    // As DDP lays parameters out in buckets: with their own strides where these leave no gaps.
    const bool is_dense = real.is_non_overlapping_and_dense();
    const at::Tensor answer =
        is_dense ? flat.as_strided(real.sizes(), real.strides(), flat.storage_offset()) : flat.view(real.sizes());
    if (!gradient.defined()) {
      gradient = at::zeros_like(parameter.detach());
    }
    (gradient.is_complex() ? at::view_as_real(gradient) : gradient).copy_(answer);
  }
}

}  // namespace bucket_moo
