#pragma once

#include "kernels/isa/weighted_sum.hpp"
#include "kernels/normal_float32.hpp"

namespace bucket_moo::isa::BUCKET_MOO_ISA {

/// Elements combined at a time: long enough that each row is read in long runs, short enough for the partial sum, and
/// the blocks of a few rows, to stay in the first-level cache.
inline constexpr int kCombineBlock = 1024;

/// Rows added in one pass over the partial sum.
inline constexpr int kCombineGroup = 4;

template <typename T, DType In, DType Out>
void add_group(const void* const* rows, const T* coefficient, int count, const T* carry, void* out, std::int64_t size) {
  switch (count) {
    case 1:
      return weighted_sum<T, In, Out, 1, kCombineBlock>(rows, coefficient, carry, out, size);
    case 2:
      return weighted_sum<T, In, Out, 2, kCombineBlock>(rows, coefficient, carry, out, size);
    case 3:
      return weighted_sum<T, In, Out, 3, kCombineBlock>(rows, coefficient, carry, out, size);
    default:
      return weighted_sum<T, In, Out, kCombineGroup, kCombineBlock>(rows, coefficient, carry, out, size);
  }
}

template <typename T, DType D>
void combine_rows(const Rows& rows, const double* coefficient, ZeroRows zero_rows, void* out) {
  constexpr DType kPartial = sizeof(T) == 8 ? DType::float64 : DType::float32;
  constexpr std::int64_t kElement = sizeof(Storage<D>);
  const auto skipped = [&](int r) { return coefficient[r] == 0 && zero_rows == ZeroRows::skip; };
  int read = 0;
  for (int r = 0; r < rows.count; ++r) read += skipped(r) ? 0 : 1;
  char* const to = static_cast<char*>(out);
  if (read == 0) {
    __builtin_memset(to, 0, static_cast<std::size_t>(rows.size * kElement));
    return;
  }
  alignas(64) T partial[kCombineBlock];
  for (std::int64_t begin = 0; begin < rows.size; begin += kCombineBlock) {
    const std::int64_t size = rows.size - begin < kCombineBlock ? rows.size - begin : kCombineBlock;
    const void* group[kCombineGroup];
    T group_coefficient[kCombineGroup];
    int in_group = 0;
    int done = 0;
    for (int r = 0; done < read; ++r) {
      if (skipped(r)) continue;
      group[in_group] = static_cast<const char*>(rows.data[r]) + begin * kElement;
      group_coefficient[in_group] = static_cast<T>(coefficient[r]);
      ++in_group;
      ++done;
      if (in_group < kCombineGroup && done < read) continue;
      const T* carry = done > in_group ? partial : nullptr;
      // `out` may be a row: its block is written only with the last group, when all rows' blocks have been read.
      if (done == read) {
        add_group<T, D, D>(group, group_coefficient, in_group, carry, to + begin * kElement, size);
      } else {
        add_group<T, D, kPartial>(group, group_coefficient, in_group, carry, partial, size);
      }
      in_group = 0;
    }
  }
}

inline bool all_normal_float32(const double* coefficient, int count) {
  for (int r = 0; r < count; ++r) {
    if (!normal_float32(coefficient[r])) return false;
  }
  return true;
}

template <DType D>
void combine_narrow(const Rows& rows, const double* coefficient, ZeroRows zero_rows, void* out) {
  if (all_normal_float32(coefficient, rows.count)) {
    combine_rows<float, D>(rows, coefficient, zero_rows, out);
  } else {
    combine_rows<double, D>(rows, coefficient, zero_rows, out);
  }
}

void combine(const Rows& rows, const double* coefficient, ZeroRows zero_rows, void* out);
void combine(const Rows& rows, const double* coefficient, ZeroRows zero_rows, void* out) {
  switch (rows.dtype) {
    case DType::float32:
      return combine_narrow<DType::float32>(rows, coefficient, zero_rows, out);
    case DType::bfloat16:
      return combine_narrow<DType::bfloat16>(rows, coefficient, zero_rows, out);
    case DType::float16:
      return combine_narrow<DType::float16>(rows, coefficient, zero_rows, out);
    case DType::float64:
      return combine_rows<double, DType::float64>(rows, coefficient, zero_rows, out);
  }
}

}  // namespace bucket_moo::isa::BUCKET_MOO_ISA
