#include "collective/own_rows.hpp"

#include <vector>

#include "kernels/accumulate.hpp"
#include "kernels/combine.hpp"
#include "kernels/normal_float32.hpp"

namespace bucket_moo {
namespace {

/// All n elements are the shard of a group of one rank.
ShardedBucket of_one_rank(std::int64_t n, DType dtype) { return sharded_apart(nullptr, nullptr, n, dtype, 1, 0); }

}  // namespace

void OwnRows::begin(std::int64_t n, DType dtype, bool in_one_sum) {
  n_ = n;
  dtype_ = dtype;
  in_one_sum_ = in_one_sum;
  any_ = false;
  if (in_one_sum) {
    by_objective_ = {};  // of steps whose weights were not known beforehand
    one_.reserve(static_cast<std::size_t>(n) * element_size(accumulation_dtype(dtype)));
  } else {
    one_.release();
    by_objective_.begin(of_one_rank(n, dtype));
  }
}

void OwnRows::add(const void* row, const PassRows& pass, int rank) {
  const auto r = static_cast<std::size_t>(rank);
  const PassRows own{{pass.objective[r]}, {pass.coefficient[r]}, pass.unit};
  by_objective_.begin_pass(own);
  by_objective_.add_to_shard({&row, 1, n_, dtype_}, 0);
  by_objective_.end_pass();
}

void OwnRows::add_to_one(const void* row, double coefficient) {
  const double factor = normal_float32(coefficient) ? coefficient : 0.0;
  accumulate({&row, 1, n_, dtype_}, &factor, any_ ? 1.0 : 0.0, one_.data(), ZeroRows::read);
  any_ = true;
}

void OwnRows::combine(const StepObjectives& objectives, std::span<const double> weights, ZeroRows zero_rows,
                      void* out) {
  if (!in_one_sum_) {  // of objectives that this rank has no row of the share is 0
    const std::vector<double> shares = by_objective_.close(objectives);
    combine_sums(by_objective_.shard(0, n_), shares, weights, zero_rows, out, dtype_);
    return;
  }
  const void* const sum = one_.data();
  const double all = any_ ? 1.0 : 0.0;
  bucket_moo::combine({&sum, 1, n_, accumulation_dtype(dtype_)}, &all, out, dtype_);
  one_.release();  // the result has its size, and takes over from here
}

}  // namespace bucket_moo
