// DeviceBackend's part for buckets that have parts with weights of their own.
#include <algorithm>
#include <cstddef>
#include <tuple>
#include <utility>

#include "bucket_moo/supports.hpp"
#include "engine/device_backend.hpp"
#include "engine/parts.hpp"
#include "engine/solver_memory.hpp"

namespace bucket_moo {
namespace {

std::byte* bytes_of(const at::Tensor& tensor) { return static_cast<std::byte*>(tensor.mutable_data_ptr()); }

/// The group of each parameter; empty where that is the bucket, whose index may change from step to step.
std::vector<std::string> groups_of(const Grouping& grouping, const PlacedReduction& call) {
  std::vector<std::string> groups(call.bucket.size());
  if (grouping.scope() != Scope::bucket) {
    std::transform(call.bucket.begin(), call.bucket.end(), groups.begin(),
                   [&](const BucketParameter& parameter) { return grouping.group_of(parameter, call.index); });
  }
  return groups;
}

std::uint64_t hash_of_name(const std::string& name) { return hash_of(BucketId{{.name = name}}); }

/// Whether random choices have keys of their own in each problem. As without parts, where there are none but for pieces
/// of the model.
bool has_own_keys(const Grouping& grouping) {
  return grouping.by_support() || grouping.scope() == Scope::parameter || grouping.scope() == Scope::groups;
}

/// That of the one group of a bucket or of the model.
std::uint64_t key_of_group(const Grouping& grouping, std::int64_t index) {
  if (grouping.scope() == Scope::bucket) {
    return has_own_keys(grouping) ? hash_of_name(std::to_string(index)) : static_cast<std::uint64_t>(index);
  }
  return has_own_keys(grouping) ? hash_of_name("model") : 0;
}

}  // namespace

/// Direct calls have no parameters, and are groups of their own.
const Grouping& DeviceBackend::grouping_of(std::uint64_t line) const {
  return line == kHookLine ? options_.grouping : of_direct_calls_;
}

/// Whether a group may have parameters in several buckets.
bool DeviceBackend::groups_span_buckets(std::uint64_t line) const {
  const Scope scope = grouping_of(line).scope();
  return scope == Scope::model || scope == Scope::groups;
}

/// The rows are complete: combines them, or leaves that to combine_solved().
void DeviceBackend::close_parts(const PlacedReduction& call, const std::shared_ptr<PutAside>& aside) {
  Rows& rows = aside->tile;
  const DeviceBucket bucket = exact_bucket(call);
  cut_parts(call, bucket, rows);
  collective_.part_gramians(bucket, rows.tile, *rows.parts, has_pieces() ? hash_of_call(call, "") : 0);
  const Grouping& grouping = grouping_of(call.line);
  const bool is_one_group = grouping.scope() == Scope::bucket || grouping.scope() == Scope::model;
  collective_.place_parts(*rows.parts,
                          {.by_support = grouping.by_support(),
                           .names_in_key = has_own_keys(grouping),
                           .key = is_one_group ? std::optional(key_of_group(grouping, call.index)) : std::nullopt});
  aside->bytes += rows.parts->capacity();
  if (groups_span_buckets(call.line)) {
    for (std::size_t p = 0; p < call.bucket.size(); ++p) {
      PartGroup& group = open_group(rows.groups[p]);
      group.parameters.push_back(call.bucket[p]);
      if (static_cast<std::int64_t>(group.parameters.size()) == options_.grouping.size_of(rows.groups[p])) {
        solve_group(group, rows.tile, /*is_fresh=*/true);
      }
    }
  } else {
    const DeviceProblems& problems = *rows.parts->groups().at(0).problems;
    aside->bytes += problems.capacity();
    PartSolve solve = part_solve();
    solve.state = memory_of_group(call.bucket);
    collective_.solve_parts(problems, rows.tile, solve, /*is_fresh=*/true);
  }
  if (is_solved(call.line, rows)) {
    combine_parts(call, rows, /*is_fresh=*/true);
  } else {
    defer(call, aside);
  }
  if (call.line == kHookLine) {
    combine_solved();
  }
}

/// Finds out where the bucket's parts lie and which groups they belong to, which seldom changes.
void DeviceBackend::cut_parts(const PlacedReduction& call, const DeviceBucket& bucket, Rows& rows) {
  const Grouping& grouping = grouping_of(call.line);
  Sections sections = sections_of(call, bucket.shard_out, bucket.shard_size, bytes_of(bucket.tail), bucket.tail_size,
                                  options_.grouping, has_pieces() ? collective_.pieces().rank() : 0);
  std::vector<std::string> groups = groups_of(grouping, call);
  if (rows.parts && rows.groups == groups && rows.parts->fits(sections, bucket.shard_size, bucket.tail_size)) {
    return;
  }
  const int count = sections.parts;
  const auto problems = [&](int of_groups, int each) {
    return std::make_shared<DeviceProblems>(device_, of_groups, grouping.by_support() ? each : 1);
  };
  std::vector<PartsOfProblems> parts;
  if (groups_span_buckets(call.line)) {
    std::map<std::string, std::vector<int>> by_group;
    for (int p = 0; p < count; ++p) {
      by_group[groups[static_cast<std::size_t>(p)]].push_back(p);
    }
    for (auto& [name, members] : by_group) {
      parts.push_back({open_group(name).problems, {{0, hash_of_name(name), std::move(members)}}});
    }
  } else if (grouping.scope() == Scope::parameter) {
    PartsOfProblems each{problems(count, 1), {}};
    for (int p = 0; p < count; ++p) {
      each.groups.push_back({p, hash_of_name(groups[static_cast<std::size_t>(p)]), {p}});
    }
    parts.push_back(std::move(each));
  } else {
    PartsOfProblems all{problems(1, std::min(count, kMaxSupports)), {{0, 0, {}}}};
    for (int p = 0; p < count; ++p) {
      all.groups[0].parts.push_back(p);
    }
    parts.push_back(std::move(all));
  }
  rows.parts = std::make_shared<DeviceParts>(device_, std::move(sections), bucket.shard_size, bucket.tail_size,
                                             std::move(parts));
  rows.groups = std::move(groups);
}

/// Of the step that is selected.
DeviceBackend::PartGroup& DeviceBackend::open_group(const std::string& name) {
  PartGroup& group = groups_[name];
  if (!group.problems) {
    group.problems = std::make_shared<DeviceProblems>(device_, 1, options_.grouping.by_support() ? kMaxSupports : 1);
  }
  if (group.begun != collective_.step().begun()) {
    group.begun = collective_.step().begun();
    group.parameters.clear();
    group.is_solved = false;
  }
  return group;
}

PartSolve DeviceBackend::part_solve() const {
  const at::Tensor& preference = method_.preference;
  return {.scales_to_mean = scales_to_mean(options_),
          .importance = preference.defined() ? preference.const_data_ptr<double>() : nullptr};
}

/// nullptr for methods without a memory, which are the only ones where a group may have several problems.
const DeviceSolverState* DeviceBackend::memory_of_group(BucketId parameters) {
  for (BucketParameter& parameter : parameters) {  // pieces may be of other sizes elsewhere: all ranks inherit alike
    parameter.numel = has_pieces() ? 1 : parameter.numel;
  }
  return has_memory(method_.method) ? memory_of(memories().open(parameters)) : nullptr;
}

void DeviceBackend::solve_group(PartGroup& group, const DeviceTile& tile, bool is_fresh) {
  PartSolve solve = part_solve();
  solve.state = memory_of_group(group.parameters);
  collective_.solve_parts(*group.problems, tile, solve, is_fresh);
  group.is_solved = true;
}

bool DeviceBackend::is_solved(std::uint64_t line, const Rows& rows) {
  return !groups_span_buckets(line) ||
         std::all_of(rows.groups.begin(), rows.groups.end(),
                     [this](const std::string& name) { return open_group(name).is_solved; });
}

void DeviceBackend::combine_parts(const PlacedReduction& call, const Rows& rows, bool is_fresh) {
  DeviceRecord& record = open_record(call, 1);
  record.parts = rows.parts;
  record.groups = rows.groups;
  record.bucket = call.bucket;
  record.begun = rows.parts->begun();
  collective_.combine_parts(exact_bucket(call), rows.tile, *rows.parts, is_fresh);
}

/// Buckets that waited, and have all their weights now.
void DeviceBackend::combine_solved() {
  for (auto next = deferred_.begin(); next != deferred_.end();) {
    if (!is_solved(kHookLine, next->aside->tile)) {
      ++next;
      continue;
    }
    combine_parts(next->call, next->aside->tile, /*is_fresh=*/false);
    combined_.push_back(std::move(*next));
    next = deferred_.erase(next);
  }
}

/// Groups that have parameters which did not come in this step get no more of them.
void DeviceBackend::finish_parts() {
  collective_.step().select(kHookLine);
  for (const Deferred& bucket : deferred_) {
    for (const std::string& name : bucket.aside->tile.groups) {
      PartGroup& group = open_group(name);
      if (!group.is_solved) {
        solve_group(group, bucket.aside->tile.tile, /*is_fresh=*/false);
      }
    }
  }
  combine_solved();
}

/// One for each problem that the bucket has parameters in. None of what a newer step, which has not come to the end of
/// this bucket yet, has overwritten.
std::vector<BucketRecord> DeviceBackend::read_parts(const DeviceRecord& record) const {
  if (record.parts->begun() != record.begun) {
    return {};
  }
  const std::vector<PartsOfProblems>& problems = record.parts->groups();
  const auto count = static_cast<std::size_t>(record.parts->parts());
  std::vector<std::size_t> problems_of(count);  // those that the part's problem is among
  for (std::size_t i = 0; i < problems.size(); ++i) {
    for (const PartsOfProblems::Group& group : problems[i].groups) {
      for (const int part : group.parts) {
        problems_of[static_cast<std::size_t>(part)] = i;
      }
    }
  }
  const StepHeader of_step = problems.at(0).problems->read(0).first;
  collective_.step().check(of_step);
  const std::vector<DeviceParts::Part> parts = record.parts->read(of_step.k);
  std::map<std::pair<std::size_t, std::int64_t>, std::optional<BucketRecord>> records;
  for (std::size_t p = 0; p < count; ++p) {
    const auto key = std::pair(problems_of[p], parts[p].problem);
    const auto [found, is_new] = records.try_emplace(key);
    std::optional<BucketRecord>& read = found->second;
    if (is_new) {
      auto [header, result] = problems[key.first].problems->read(key.second);
      if (header.step != record.step || header.k != of_step.k) {
        continue;
      }
      read = record;
      read->result = std::move(result);
      read->group = grouping_of(record.line).scope() == Scope::bucket ? std::string() : record.groups[p];
      read->solved_step = header.step;
      read->objectives = collective_.step().objective_names(record.line, header.k);
      read->rows = collective_.step().objective_rows(record.line, header.k);
      read->parameters.clear();
      read->numel = 0;
      std::fill(read->result.gramian.begin(), read->result.gramian.end(), 0.0);
    }
    if (!read) {
      continue;
    }
    const BucketParameter& parameter = record.bucket[p];
    read->numel += count == 1 ? record.numel : parameter.numel;
    if (!parameter.title.empty()) {
      read->parameters.push_back(parameter.title);
    }
    std::transform(parts[p].gramian.begin(), parts[p].gramian.end(), read->result.gramian.begin(),
                   read->result.gramian.begin(), std::plus<>());
  }
  std::vector<BucketRecord> all;
  for (auto& [key, read] : records) {
    if (read) {
      all.push_back(std::move(*read));
    }
  }
  return all;
}

}  // namespace bucket_moo
