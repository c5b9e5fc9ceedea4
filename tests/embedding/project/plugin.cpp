#include <array>
#include <bucket_moo/solve.hpp>
#include <kernels/gramian.hpp>

#include "collective/agreed_error.hpp"
#include "collective/moo_collective.hpp"
#include "methods/method_config.hpp"

#define SHOWN __attribute__((visibility("default")))

/// What this library is for: weights of two gradients of n elements, of the method by name.
extern "C" SHOWN double first_weight(const char* method, const float* a, const float* b, int n) {
  const bucket_moo::MethodConfig config(
      {.name = method, .numbers = {}, .mode = {}, .preference = {}, .permutation = {}});
  bucket_moo::MooCollective collective(nullptr, config.method());
  const std::array<const void*, 2> rows{a, b};
  const std::array<int, 2> objective{0, 1};
  const std::array<double, 2> share{1.0, 1.0};
  bucket_moo::BucketSolution solution{std::vector<double>(4), std::vector<double>(2), {}, {}};
  bucket_moo::gramian({rows.data(), 2, n, bucket_moo::DType::float32}, {objective.data(), share.data(), 2},
                      solution.gramian.data());
  collective.solve({}, nullptr, solution);
  return solution.weights[0];
}

/// Throws out of the library what the collective throws.
extern "C" SHOWN void disagree() { throw bucket_moo::AgreedError("the ranks of a plug-in disagree"); }
