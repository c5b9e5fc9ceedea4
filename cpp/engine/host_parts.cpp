// HostBackend's part for buckets that have parts with weights of their own.
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "bucket_moo/lanes.hpp"
#include "bucket_moo/supports.hpp"
#include "engine/host_backend.hpp"
#include "engine/parts.hpp"

namespace bucket_moo {
namespace {

/// What of [0, size) is in no section.
void zero_between(std::span<const Section> sections, std::int64_t size, std::byte* out, std::size_t element) {
  std::int64_t end = 0;
  const auto zero_up_to = [&](std::int64_t begin) {
    if (begin > end) {
      std::memset(out + static_cast<std::size_t>(end) * element, 0, static_cast<std::size_t>(begin - end) * element);
    }
  };
  for (const Section& section : sections) {
    zero_up_to(section.begin);
    end = section.begin + section.size;
  }
  zero_up_to(size);
}

void zero_padding(const ShardedBucket& bucket, const Sections& sections) {
  zero_between(sections.shard, bucket.shard_size, bucket.shard_out, element_size(bucket.dtype));
  zero_between(sections.tail, bucket.tail_size, bucket.tail_out, element_size(bucket.dtype));
}

}  // namespace

/// Direct calls have no parameters, and are groups of their own.
const Grouping& HostBackend::grouping_of(std::uint64_t line) const {
  return line == kHookLine ? options_.grouping : of_direct_calls_;
}

/// Whether it may have to wait for other buckets.
bool HostBackend::spans_buckets(const PlacedReduction& call) const {
  return call.line == kHookLine && options_.grouping.spans_buckets(call.bucket);
}

Sections HostBackend::sections_of(const PlacedReduction& call, const ShardedBucket& bucket) const {
  return bucket_moo::sections_of(call, bucket.shard_out, bucket.shard_size, bucket.tail_out, bucket.tail_size,
                                 options_.grouping, pieces_ ? pieces_->rank() : 0);
}

/// In a step of one pass, where no part of the bucket waits for others.
void HostBackend::reduce_parts(const PlacedReduction& call) {
  sum_inside(call);
  const ShardedBucket bucket = sharded(call, call.tile_limit);
  const Sections sections = sections_of(call, bucket);
  BucketParts parts;
  parts.gramians = collective_.part_gramians(bucket, sections);
  parts.norms = collective_.row_norms();
  add_to_problems(call, parts);
  solve_ready(call.line);
  collective_.combine_parts(bucket, sections, weights_of(call.line, parts));
  zero_padding(bucket, sections);
  gather(call, bucket);
  keep_records(call, parts);
}

/// The rows are complete: combines them, or leaves that to finish_parts().
void HostBackend::close_parts(Closed bucket) {
  const PlacedReduction& call = bucket.job->call;
  const std::uint64_t line = call.line;
  const Sections sections = sections_of(call, sharded(call));
  PartGramians tile = collective_.exchange_gramians(bucket.aside->tile.tile, steps_[line].objectives, sections);
  bucket.gramian.shares = std::move(tile.shares);
  bucket.parts.gramians = std::move(tile.gramians);
  bucket.parts.norms = collective_.row_norms();
  add_to_problems(call, bucket.parts);
  solve_ready(line);
  if (!is_solved(line, bucket.parts)) {
    deferred_.push_back(std::move(bucket));
  } else {
    combine_parts(bucket);
  }
  if (line == kHookLine) {
    combine_solved();
  }
}

/// Groups that have parameters which did not come in this step get no more of them.
void HostBackend::finish_parts() {
  const Step& step = steps_[kHookLine];
  collective_.continue_pass(step.newest_pass);  // another line may have begun one meanwhile
  steps_[kHookLine].problems.complete_all();
  solve_ready(kHookLine);
  combine_solved();
}

/// Buckets that waited, and have all their weights now. One that fails waits on, for its Future's error.
void HostBackend::combine_solved() {
  for (std::size_t i = 0; i < deferred_.size();) {
    if (!is_solved(kHookLine, deferred_[i].parts)) {
      ++i;
      continue;
    }
    combine_parts(deferred_[i]);
    finished_.push_back(std::move(deferred_[i].job));
    deferred_.erase(deferred_.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

void HostBackend::combine_parts(const Closed& bucket) {
  const PlacedReduction& call = bucket.job->call;
  const ShardedBucket where = sharded(call);
  const Sections sections = sections_of(call, where);
  collective_.combine_tile(bucket.aside->tile.tile, bucket.gramian.shares, weights_of(call.line, bucket.parts),
                           sections, where);
  zero_padding(where, sections);
  gather(call, where);
  note_memory(*bucket.aside);
  keep_records(call, bucket.parts);
}

void HostBackend::add_to_problems(const PlacedReduction& call, BucketParts& parts) {
  Step& step = steps_[call.line];
  parts.problems = step.problems.add(grouping_of(call.line), call.bucket, call.index, step.objectives.names().size(),
                                     parts.gramians);
}

bool HostBackend::is_solved(std::uint64_t line, const BucketParts& parts) const {
  const ProblemSet& problems = steps_.at(line).problems;
  return std::all_of(parts.problems.begin(), parts.problems.end(),
                     [&](std::size_t problem) { return problems[problem].is_solved; });
}

/// [parts, K]
std::vector<double> HostBackend::weights_of(std::uint64_t line, const BucketParts& parts) const {
  std::vector<double> weights;
  for (const std::size_t problem : parts.problems) {
    const std::vector<double>& of_part = steps_.at(line).problems[problem].result.weights;
    weights.insert(weights.end(), of_part.begin(), of_part.end());
  }
  return weights;
}

void HostBackend::solve_ready(std::uint64_t line) {
  Step& step = steps_[line];
  const std::vector<std::string>& objectives = step.objectives.names();
  for (const std::size_t number : step.problems.ready()) {
    PartProblem& problem = step.problems[number];
    BucketId owner = problem.parameters;
    for (BucketParameter& parameter : owner) {  // pieces may be of other sizes elsewhere: all ranks inherit alike
      parameter.numel = pieces_ ? 1 : parameter.numel;
    }
    std::vector<double> memory = prepare_method(owner, objectives);
    const RandomKey key{options_.seed, static_cast<std::uint64_t>(step.number), random_bucket(problem, objectives)};
    collective_.solve(key, memory.empty() ? nullptr : memory.data(), problem.result);
    store_memory(owner, objectives, memory);
    if (scales_to_mean(options_) && problem.result.solution.status != Status::nonfinite) {
      const double* const importance = options_.method.preference().empty() ? nullptr : preference_.data();
      scale_to_mean(HostLanes{}, importance, static_cast<int>(objectives.size()), problem.result.gramian.data(),
                    problem.result.weights.data());
    }
    problem.is_solved = true;
  }
}

/// What random choices are keyed by. As without parts, where there are none but for pieces of the model.
std::uint64_t HostBackend::random_bucket(const PartProblem& problem, std::span<const std::string> objectives) const {
  const Grouping& grouping = options_.grouping;
  if (grouping.by_support() || grouping.scope() == Scope::parameter || grouping.scope() == Scope::groups) {
    return hash_of(problem, objectives);
  }
  return grouping.scope() == Scope::model ? 0 : std::stoull(problem.group);
}

/// One for each problem that the bucket has parameters in.
void HostBackend::keep_records(const PlacedReduction& call, const BucketParts& parts) {
  const Step& step = steps_[call.line];
  const std::size_t k = step.objectives.names().size();
  const std::size_t size = k * k;
  std::vector<std::size_t> order = parts.problems;
  std::sort(order.begin(), order.end());
  order.erase(std::unique(order.begin(), order.end()), order.end());
  std::vector<BucketRecord> records;
  for (const std::size_t number : order) {
    const PartProblem& problem = step.problems[number];
    BucketRecord record = record_of(call, options_.sketch);
    record.group = grouping_of(call.line).scope() == Scope::bucket ? std::string() : problem.group;
    record.objectives = step.objectives.names();
    record.parameters.clear();
    record.result.weights = problem.result.weights;
    record.result.solution = problem.result.solution;
    record.result.gramian.resize(size);
    record.result.norms.shares = parts.norms.shares;
    record.result.norms.squares.resize(parts.norms.squares.empty() ? 0 : k);
    std::int64_t numel = 0;
    for (std::size_t p = 0; p < parts.problems.size(); ++p) {
      if (parts.problems[p] != number) {
        continue;
      }
      const BucketParameter& parameter = call.bucket[p];
      numel += parameter.numel;
      if (!parameter.title.empty()) {
        record.parameters.push_back(parameter.title);
      }
      for (std::size_t i = 0; i < size; ++i) {
        record.result.gramian[i] += parts.gramians[p * size + i];
      }
      for (std::size_t i = 0; i < record.result.norms.squares.size(); ++i) {
        record.result.norms.squares[i] += parts.norms.squares[p * k + i];
      }
    }
    record.numel = call.bucket.size() == 1 ? record.numel : numel;
    records.push_back(std::move(record));
  }
  keep_records(call, std::move(records));
}

}  // namespace bucket_moo
