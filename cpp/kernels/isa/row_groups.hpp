#pragma once

#include "kernels/isa/weighted_sum.hpp"

namespace bucket_moo::isa::BUCKET_MOO_ISA {

/// Elements of the rows added up at a time: long enough that each row is read in long runs, short enough for the sum,
/// and the blocks of a few rows, to stay in the first-level cache.
inline constexpr int kRowBlock = 1024;

/// Rows added in one pass over the sum.
inline constexpr int kRowGroup = 4;

/// How sums in T lie in memory.
template <typename T>
inline constexpr DType kAccumulation = sizeof(T) == 8 ? DType::float64 : DType::float32;

template <typename T, DType In, DType Out>
void add_group(const void* const* rows, const T* coefficient, int count, const T* carry, void* out, std::int64_t size) {
  switch (count) {
    case 1:
      return weighted_sum<T, In, Out, 1, kRowBlock>(rows, coefficient, carry, out, size);
    case 2:
      return weighted_sum<T, In, Out, 2, kRowBlock>(rows, coefficient, carry, out, size);
    case 3:
      return weighted_sum<T, In, Out, 3, kRowBlock>(rows, coefficient, carry, out, size);
    default:
      return weighted_sum<T, In, Out, kRowGroup, kRowBlock>(rows, coefficient, carry, out, size);
  }
}

/// The rows of a weighted sum that are read, in their order, a few at a time.
class RowGroups {
 public:
  RowGroups(const Rows& rows, const double* coefficient, ZeroRows zero_rows)
      : rows_(rows), coefficient_(coefficient), zero_rows_(zero_rows) {
    for (int r = 0; r < rows.count; ++r) read_ += skipped(r) ? 0 : 1;
  }

  bool empty() const { return read_ == 0; }

  /// Calls add(rows, coefficients, count, last) for groups of at most kRowGroup rows, each from element `begin` on.
  template <typename T, DType D, class Add>
  void visit(std::int64_t begin, Add add) const {
    const void* group[kRowGroup];
    T factors[kRowGroup];
    int in_group = 0;
    int done = 0;
    for (int r = 0; done < read_; ++r) {
      if (skipped(r)) continue;
      group[in_group] = static_cast<const Storage<D>*>(rows_.data[r]) + begin;
      factors[in_group] = static_cast<T>(coefficient_[r]);
      ++in_group;
      ++done;
      if (in_group < kRowGroup && done < read_) continue;
      add(group, factors, in_group, done == read_);
      in_group = 0;
    }
  }

 private:
  bool skipped(int r) const { return coefficient_[r] == 0 && zero_rows_ == ZeroRows::skip; }

  const Rows& rows_;
  const double* coefficient_;
  ZeroRows zero_rows_;
  int read_ = 0;
};

}  // namespace bucket_moo::isa::BUCKET_MOO_ISA
