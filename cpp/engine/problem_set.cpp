#include "engine/problem_set.hpp"

#include <algorithm>
#include <functional>

namespace bucket_moo {
namespace {

Support support_of_gramian(std::span<const double> gramian, std::size_t k) {
  return support_of(static_cast<int>(k), [&](int i) { return gramian[static_cast<std::size_t>(i) * (k + 1)]; });
}

}  // namespace

std::vector<std::size_t> ProblemSet::add(const Grouping& grouping, const BucketId& bucket, std::int64_t index,
                                         std::size_t k, std::span<const double> gramians) {
  std::vector<std::size_t> problems;
  for (std::size_t p = 0; p < bucket.size(); ++p) {
    const std::span<const double> gramian = gramians.subspan(p * k * k, k * k);
    const std::string name = grouping.group_of(bucket[p], index);
    Group& group = groups_[name];
    const std::size_t number = problem_of(
        group, name, grouping.by_support() ? support_of_gramian(gramian, k) : all_objectives(static_cast<int>(k)), k);
    PartProblem& problem = problems_[number];
    problem.parameters.push_back(bucket[p]);
    std::vector<double>& sum = problem.result.gramian;
    std::transform(gramian.begin(), gramian.end(), sum.begin(), sum.begin(), std::plus<>());
    problems.push_back(number);
    ++group.parameters;
    const bool is_of_bucket = grouping.scope() == Scope::bucket || grouping.scope() == Scope::parameter;
    group.is_complete = is_of_bucket || group.parameters == grouping.size_of(name);
  }
  return problems;
}

std::size_t ProblemSet::problem_of(Group& group, const std::string& name, Support support, std::size_t k) {
  const auto known = [&](int i) { return problems_[group.problems[static_cast<std::size_t>(i)]].support; };
  const auto place = static_cast<std::size_t>(bucket_moo::problem_of(static_cast<int>(group.problems.size()), known,
                                                                     all_objectives(static_cast<int>(k)), &support));
  if (place < group.problems.size()) {
    return group.problems[place];
  }
  PartProblem problem;
  problem.group = name;
  problem.support = support;
  problem.result.gramian.resize(k * k);
  problem.result.weights.resize(k);
  problems_.push_back(std::move(problem));
  group.problems.push_back(problems_.size() - 1);
  return group.problems.back();
}

void ProblemSet::complete_all() {
  for (auto& [name, group] : groups_) {
    group.is_complete = true;
  }
}

std::vector<std::size_t> ProblemSet::ready() const {
  std::vector<std::size_t> ready;
  for (const auto& [name, group] : groups_) {
    if (group.is_complete) {
      std::copy_if(group.problems.begin(), group.problems.end(), std::back_inserter(ready),
                   [&](std::size_t problem) { return !problems_[problem].is_solved; });
    }
  }
  std::sort(ready.begin(), ready.end());
  return ready;
}

std::uint64_t hash_of(const PartProblem& problem, std::span<const std::string> objectives) {
  std::uint64_t sum = hash_of(BucketId{{.name = problem.group}});
  for (std::size_t k = 0; k < objectives.size(); ++k) {
    if ((problem.support >> k & 1U) != 0) {
      sum += hash_of(BucketId{{.name = objectives[k]}});
    }
  }
  return sum;
}

}  // namespace bucket_moo
