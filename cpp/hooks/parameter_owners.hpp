// States of buckets, found by the parameters that a bucket holds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace bucket_moo {

/// A parameter of a bucket; labels are distinct.
struct BucketParameter {
  std::string label;
  std::int64_t numel = 0;
};

/// Survives DDP's rebuilding of its buckets: every parameter belongs to the state of the bucket that held it last, and
/// a bucket that is new starts from the state that most of its elements belong to (of several, the one met first in the
/// order of its parameters). States that no parameter belongs to any more are dropped.
template <class State>
class ParameterOwners {
 public:
  /// The state that exactly these parameters belong to; else a new one, make(nullptr) or make(&the state to start
  /// from).
  template <class Make>
  State& find(const std::vector<BucketParameter>& parameters, Make make) {
    const auto found = owner_.find(parameters.at(0).label);
    if (found != owner_.end() && found->second->parameters == parameters.size() &&
        std::all_of(parameters.begin(), parameters.end(), [&](const BucketParameter& parameter) {
          const auto other = owner_.find(parameter.label);
          return other != owner_.end() && other->second == found->second;
        })) {
      return found->second->state;
    }
    const Entry* const from = predecessor(parameters);
    const auto made = std::make_shared<Entry>(Entry{make(from == nullptr ? nullptr : &from->state), 0});
    for (const BucketParameter& parameter : parameters) {
      std::shared_ptr<Entry>& owner = owner_[parameter.label];
      if (owner) {
        --owner->parameters;
      }
      owner = made;
      ++made->parameters;
    }
    return made->state;
  }

  /// All states with the labels of their parameters, ordered by their first labels.
  std::vector<std::pair<std::vector<std::string>, const State*>> buckets() const {
    std::vector<std::pair<std::vector<std::string>, const State*>> all;
    std::map<const Entry*, std::size_t> place;
    for (const auto& [label, entry] : owner_) {
      const auto [found, fresh] = place.emplace(entry.get(), all.size());
      if (fresh) {
        all.push_back({{}, &entry->state});
      }
      all[found->second].first.push_back(label);
    }
    return all;
  }

  /// Adds a bucket. Returns the first label that belongs to another bucket already, or nullptr; then nothing is added.
  const std::string* add(const std::vector<std::string>& labels, State state) {
    for (const std::string& label : labels) {
      if (owner_.contains(label)) {
        return &label;
      }
    }
    const auto made = std::make_shared<Entry>(Entry{std::move(state), labels.size()});
    for (const std::string& label : labels) {
      owner_[label] = made;
    }
    return nullptr;
  }

 private:
  struct Entry {
    State state;
    std::size_t parameters;  // that belong to it
  };

  const Entry* predecessor(const std::vector<BucketParameter>& parameters) const {
    std::map<const Entry*, std::int64_t> elements;
    for (const BucketParameter& parameter : parameters) {
      if (const auto found = owner_.find(parameter.label); found != owner_.end()) {
        elements[found->second.get()] += parameter.numel;
      }
    }
    const Entry* best = nullptr;
    for (const BucketParameter& parameter : parameters) {  // not in the order of `elements`, which is that of addresses
      const auto found = owner_.find(parameter.label);
      if (found != owner_.end() && (best == nullptr || elements[found->second.get()] > elements[best])) {
        best = found->second.get();
      }
    }
    return best;
  }

  std::map<std::string, std::shared_ptr<Entry>> owner_;  // by label
};

}  // namespace bucket_moo
