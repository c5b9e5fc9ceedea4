#include "hooks/first_pass.hpp"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include <cstdint>

namespace bucket_moo {

void FirstPass::keep(const BucketId& bucket, const at::Tensor& buffer) {
  const at::NoGradGuard no_grad;
  const at::Tensor copy = buffer.clone();
  std::int64_t begin = 0;
  for (const BucketParameter& parameter : bucket) {
    gradients_[parameter.name] = copy.narrow(0, begin, parameter.numel);
    begin += parameter.numel;
  }
}

at::Tensor FirstPass::row_of(const BucketId& bucket, const at::Tensor& buffer) const {
  const at::NoGradGuard no_grad;
  at::Tensor row = at::zeros_like(buffer);
  std::int64_t begin = 0;
  for (const BucketParameter& parameter : bucket) {
    if (const auto kept = gradients_.find(parameter.name); kept != gradients_.end()) {
      row.narrow(0, begin, parameter.numel).copy_(kept->second);
    }
    begin += parameter.numel;
  }
  return row;
}

void FirstPass::forget() {
  options_.reset();
  gradients_.clear();
}

}  // namespace bucket_moo
