#include "engine/grouping.hpp"

#include <c10/util/StringUtil.h>

#include <utility>

#include "collective/agreed_error.hpp"

namespace bucket_moo {

Grouping::Grouping(Scope scope, std::map<std::string, std::string> groups, bool by_support, bool keeps_mean_scale,
                   bool has_pieces, std::set<std::string> replicated)
    : scope_(scope),
      groups_(std::move(groups)),
      by_support_(by_support),
      keeps_mean_scale_(keeps_mean_scale),
      has_pieces_(has_pieces),
      replicated_(std::move(replicated)) {
  for (const auto& [parameter, group] : groups_) {
    ++sizes_[group];
  }
}

std::string Grouping::group_of(const BucketParameter& parameter, std::int64_t index) const {
  switch (scope_) {
    case Scope::bucket:
      return std::to_string(index);
    case Scope::model:
      return "model";
    case Scope::parameter:
      return parameter.name;
    case Scope::groups:
      break;
  }
  const auto found = groups_.find(parameter.name);
  if (found == groups_.end()) {
    throw AgreedError(c10::str("bucket_moo_ext: scope: parameter '", parameter.name,
                               "' is in no group, because its name was not known when the state was first used; call "
                               "name_parameters() with all parameters before"));
  }
  return found->second;
}

std::int64_t Grouping::size_of(const std::string& group) const {
  const auto found = sizes_.find(group);
  return found == sizes_.end() ? 0 : found->second;
}

bool Grouping::spans_buckets(const BucketId& bucket) const {
  if (scope_ != Scope::groups) {
    return scope_ == Scope::model;
  }
  std::map<std::string, std::int64_t> here;
  for (const BucketParameter& parameter : bucket) {
    const auto found = groups_.find(parameter.name);
    if (found != groups_.end()) {
      ++here[found->second];
    }
  }
  for (const auto& [group, count] : here) {
    if (count < size_of(group)) {
      return true;
    }
  }
  return false;
}

}  // namespace bucket_moo
