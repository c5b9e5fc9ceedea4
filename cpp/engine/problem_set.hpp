// The problems of a step in which a bucket has parts with weights of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "bucket_moo/supports.hpp"
#include "collective/moo_collective.hpp"
#include "engine/bucket_id.hpp"
#include "engine/grouping.hpp"

namespace bucket_moo {

/// Parameters that share weights.
struct PartProblem {
  std::string group;
  Support support = 0;    ///< objectives that these parameters depend on; all, where it has several supports
  BucketId parameters;    ///< of all buckets so far
  BucketSolution result;  ///< its Gramian: the sum over the parameters
  bool is_solved = false;
};

/// Puts every parameter into the problem of its group and support, as it comes, and knows when a group has all of its
/// parameters. Deterministic: ranks that see the same Gramians have the same problems.
///
/// Source: arXiv 2606.05613: at a refined Pareto-stationary point a parameter is stationary for the objectives that
/// depend on it.
class ProblemSet {
 public:
  /// Adds a bucket's parameters. `gramians`: [parameters, K, K], of each. Returns the problem of each.
  std::vector<std::size_t> add(const Grouping& grouping, const BucketId& bucket, std::int64_t index, std::size_t k,
                               std::span<const double> gramians);

  /// From now on every group has all of its parameters.
  void complete_all();

  /// Problems that have all of their parameters and are not solved yet, in the order in which they came up.
  std::vector<std::size_t> ready() const;

  PartProblem& operator[](std::size_t problem) { return problems_.at(problem); }
  const PartProblem& operator[](std::size_t problem) const { return problems_.at(problem); }
  bool empty() const { return problems_.empty(); }

 private:
  struct Group {
    std::vector<std::size_t> problems;
    std::int64_t parameters = 0;  // so far
    bool is_complete = false;
  };

  std::size_t problem_of(Group& group, const std::string& name, Support support, std::size_t k);

  std::vector<PartProblem> problems_;
  std::map<std::string, Group> groups_;
};

/// A number for a problem that depends on neither buckets nor the order of objectives, for random choices.
std::uint64_t hash_of(const PartProblem& problem, std::span<const std::string> objectives);

}  // namespace bucket_moo
