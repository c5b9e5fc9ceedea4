// What outlives the reduction of a bucket.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/bucket_id.hpp"

namespace bucket_moo {

/// A page for every bucket, found by the names of its parameters. On it: the record of the last reduction (for
/// kRememberedSteps) with the gradients that are put aside for a step of several passes, weights that are kept for
/// later steps (until forget_steps()), and the memory of a method that has one (for good).
///
/// Survives DDP's rebuilding of its buckets: every parameter belongs to the bucket that held it last. A bucket that is
/// new starts with a copy of the memory that most of its elements belong to (of several, the one met first in the order
/// of its parameters). Pages that no parameter belongs to any more are dropped.
///
/// `Record` has members `step` and `index`; `Memory` has `clone()`; `Aside` is a pointer. Not thread-safe.
template <class Record, class Kept, class Memory, class Aside = std::nullptr_t>
class BucketBook {
 public:
  struct Page {
    std::optional<Record> record;
    std::optional<Kept> kept;
    std::optional<Memory> memory;
    Aside aside = nullptr;
  };

  /// The page of a bucket, or nullptr.
  Page* find(const BucketId& bucket) const {
    const std::shared_ptr<Entry> entry = entry_of(bucket);
    return entry && entry->names == names_of(bucket) ? &entry->page : nullptr;
  }

  /// The page of a bucket; a new one if need be.
  Page& open(const BucketId& bucket) {
    std::vector<std::string> names = names_of(bucket);
    const std::shared_ptr<Entry> known = entry_of(bucket);
    if (known) {
      if (known->names != names) {  // the same parameters in another order: to a method it is the same bucket
        if (keeps_all_) {
          retired_.push_back(std::make_shared<Entry>());
          retired_.back()->page.record = std::move(known->page.record);
          retired_.back()->page.kept = std::move(known->page.kept);
        }
        known->names = std::move(names);
        known->page.record.reset();
        known->page.kept.reset();
        known->page.aside = nullptr;
      }
      return known->page;
    }
    const Entry* const from = predecessor(bucket);
    const auto made = std::make_shared<Entry>();
    if (from != nullptr && from->page.memory) {
      made->page.memory = from->page.memory->clone();
    }
    made->names = std::move(names);
    hand_over(made);
    return made->page;
  }

  /// Calls the function for the page of every other bucket that has one of these parameters.
  template <class Function>
  void for_each_overlapping(const BucketId& bucket, Function function) const {
    const Page* const own = find(bucket);
    std::set<const Entry*> seen;
    for (const BucketParameter& parameter : bucket) {
      const auto found = owner_.find(parameter.name);
      if (found != owner_.end() && &found->second->page != own && seen.insert(found->second.get()).second) {
        function(found->second->page);
      }
    }
  }

  /// The records of the newest step, by index.
  std::vector<const Record*> newest_records() const {
    std::int64_t newest = 0;
    for_each(
        [&](const Entry& entry) { newest = entry.page.record ? std::max(newest, entry.page.record->step) : newest; });
    std::vector<const Record*> records;
    for_each([&](const Entry& entry) {
      if (entry.page.record && entry.page.record->step == newest) {
        records.push_back(&*entry.page.record);
      }
    });
    std::sort(records.begin(), records.end(), [](const Record* a, const Record* b) { return a->index < b->index; });
    return records;
  }

  /// So that buckets that do not come again do not pile up.
  void forget_records_of_long_ago(std::int64_t step) {
    forget([step](Page& page) {
      if (page.record && page.record->step < step - kRememberedSteps) {
        page.record.reset();
        page.aside = nullptr;
      }
    });
  }

  /// All but the memories of methods.
  void forget_steps() {
    forget([](Page& page) {
      page.record.reset();
      page.kept.reset();
      page.aside = nullptr;
    });
  }

  /// From now on nothing is dropped or forgotten: a captured graph goes on using what the pages hold.
  void keep_all() { keeps_all_ = true; }

  template <class Function>
  void for_each_page(Function function) const {
    for_each([&](const Entry& entry) { function(entry.page); });
  }

  /// The memories with the names of their buckets' parameters, in alphabetical order.
  std::vector<std::pair<std::vector<std::string>, const Memory*>> memories() const {
    std::vector<std::pair<std::vector<std::string>, const Memory*>> all;
    for_each([&](const Entry& entry) {
      if (entry.page.memory) {
        std::vector<std::string> names;
        for (const auto& [name, owner] : owner_) {
          if (owner.get() == &entry) {
            names.push_back(name);
          }
        }
        all.push_back({std::move(names), &*entry.page.memory});
      }
    });
    return all;
  }

  /// Adds a bucket that has a memory and nothing else yet. Returns the first name that belongs to another bucket
  /// already, or nullptr; then nothing is added.
  const std::string* add(const std::vector<std::string>& names, Memory memory) {
    for (const std::string& name : names) {
      if (owner_.contains(name)) {
        return &name;
      }
    }
    const auto made = std::make_shared<Entry>();
    made->page.memory = std::move(memory);
    made->names = names;
    hand_over(made);
    return nullptr;
  }

 private:
  /// Direct calls are steps, and a training loop may make thousands of them in turn.
  static constexpr std::int64_t kRememberedSteps = 1 << 13;

  struct Entry {
    Page page;
    std::vector<std::string> names;  // of the bucket's parameters
    std::size_t owned = 0;           // how many of them still belong to it
  };

  /// The entry that exactly these parameters belong to, in any order.
  std::shared_ptr<Entry> entry_of(const BucketId& bucket) const {
    const auto found = owner_.find(bucket.at(0).name);
    if (found == owner_.end() || found->second->owned != bucket.size()) {
      return nullptr;
    }
    const bool all = std::all_of(bucket.begin(), bucket.end(), [&](const BucketParameter& parameter) {
      const auto other = owner_.find(parameter.name);
      return other != owner_.end() && other->second == found->second;
    });
    return all ? found->second : nullptr;
  }

  const Entry* predecessor(const BucketId& bucket) const {
    std::map<const Entry*, std::int64_t> elements;
    for (const BucketParameter& parameter : bucket) {
      if (const auto found = owner_.find(parameter.name); found != owner_.end()) {
        elements[found->second.get()] += parameter.numel;
      }
    }
    const Entry* best = nullptr;
    for (const BucketParameter& parameter : bucket) {  // not in the order of `elements`, which is that of addresses
      const auto found = owner_.find(parameter.name);
      if (found != owner_.end() && (best == nullptr || elements[found->second.get()] > elements[best])) {
        best = found->second.get();
      }
    }
    return best;
  }

  void hand_over(const std::shared_ptr<Entry>& made) {
    for (const std::string& name : made->names) {
      std::shared_ptr<Entry>& owner = owner_[name];
      if (owner) {
        if (--owner->owned == 0 && keeps_all_) {
          retired_.push_back(owner);
        }
      }
      owner = made;
      ++made->owned;
    }
  }

  template <class Function>
  void for_each(Function function) const {
    std::set<const Entry*> seen;
    for (const auto& [name, entry] : owner_) {
      if (seen.insert(entry.get()).second) {
        function(*entry);
      }
    }
  }

  template <class Function>
  void forget(Function function) {
    if (keeps_all_) {
      return;
    }
    for (const auto& [name, entry] : owner_) {
      function(entry->page);
    }
    std::erase_if(owner_, [](const auto& item) {
      const Page& page = item.second->page;
      return !page.record && !page.kept && !page.memory && page.aside == nullptr;
    });
  }

  std::map<std::string, std::shared_ptr<Entry>> owner_;  // by the name of a parameter
  std::vector<std::shared_ptr<Entry>> retired_;
  bool keeps_all_ = false;
};

}  // namespace bucket_moo
