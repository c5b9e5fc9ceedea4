#include "hooks/parameter_names.hpp"

#include <c10/util/StringUtil.h>

namespace bucket_moo {

void ParameterNames::set(const std::vector<std::pair<std::string, at::Tensor>>& named) {
  const std::lock_guard lock(mutex_);
  for (const auto& [name, parameter] : named) {
    known(parameter).given = name;
  }
}

BucketId ParameterNames::bucket_of(const std::vector<at::Tensor>& parameters) {
  const std::lock_guard lock(mutex_);
  BucketId bucket;
  for (const at::Tensor& parameter : parameters) {
    Known& found = known(parameter);
    if (found.name.empty()) {
      found.name = found.given.empty() ? c10::str("#", reduced_) : found.given;
      ++reduced_;
    }
    bucket.push_back({.name = found.name,
                      .numel = parameter.is_complex() ? 2 * parameter.numel() : parameter.numel(),
                      .title = found.given.empty() ? c10::str("parameter", parameter.sizes()) : found.given});
  }
  return bucket;
}

ParameterNames::Known& ParameterNames::known(const at::Tensor& parameter) {
  const void* const address = parameter.unsafeGetTensorImpl();
  const auto found = known_.find(address);
  if (found != known_.end() && !found->second.identity.expired()) {
    return found->second;
  }
  return known_.insert_or_assign(address, Known{WeakTensorImpl(parameter.getIntrusivePtr()), {}, {}}).first->second;
}

}  // namespace bucket_moo
