// Which parameters share weights.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "engine/bucket_id.hpp"

namespace bucket_moo {

/// What weights are solved for.
enum class Scope {
  bucket,     ///< every bucket
  model,      ///< all buckets of a step together
  parameter,  ///< every parameter
  groups,     ///< groups of parameters, which may lie in several buckets
};

/// The same on every rank.
class Grouping {
 public:
  Grouping() = default;
  /// `groups`: of Scope::groups, by the name of a parameter.
  /// `by_support`: whether parameters of a group that other objectives depend on get weights of their own.
  /// `keeps_mean_scale`: whether those of fewer objectives are scaled down to what the mean over all would be.
  /// `has_pieces`: whether other ranks hold other pieces of the model. `replicated`: parameters of which they all have
  /// copies, by name.
  Grouping(Scope scope, std::map<std::string, std::string> groups, bool by_support, bool keeps_mean_scale,
           bool has_pieces = false, std::set<std::string> replicated = {});

  Scope scope() const { return scope_; }
  bool by_support() const { return by_support_; }
  bool has_pieces() const { return has_pieces_; }
  bool keeps_mean_scale() const { return keeps_mean_scale_; }

  /// Whether a bucket may have parts with weights of their own.
  bool has_parts() const { return by_support_ || scope_ == Scope::parameter || scope_ == Scope::groups || has_pieces_; }

  bool is_replicated(const BucketParameter& parameter) const { return replicated_.contains(parameter.name); }

  /// Which group a bucket's parameter is in. `index`: of the bucket in its pass.
  /// \throw AgreedError if it has none
  std::string group_of(const BucketParameter& parameter, std::int64_t index) const;

  /// How many parameters a group has; 0: not known before the end of a step.
  std::int64_t size_of(const std::string& group) const;

  /// Whether a group may have parameters in other buckets too.
  bool spans_buckets(const BucketId& bucket) const;

 private:
  Scope scope_ = Scope::bucket;
  std::map<std::string, std::string> groups_;
  std::map<std::string, std::int64_t> sizes_;
  bool by_support_ = false;
  bool keeps_mean_scale_ = true;
  bool has_pieces_ = false;
  std::set<std::string> replicated_;
};

}  // namespace bucket_moo
