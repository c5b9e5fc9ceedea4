#pragma once

#include "kernels/isa/row_groups.hpp"

namespace bucket_moo::isa::BUCKET_MOO_ISA {

template <typename T, DType D>
void accumulate_rows(const Rows& rows, const double* coefficient, double decay, ZeroRows zero_rows, void* sum) {
  constexpr DType kSum = kAccumulation<T>;
  const RowGroups groups(rows, coefficient, zero_rows);
  if (groups.empty() && decay == 1) return;
  if (groups.empty() && decay == 0) {
    __builtin_memset(sum, 0, static_cast<std::size_t>(rows.size) * sizeof(T));
    return;
  }
  const T factor = static_cast<T>(decay);
  for (std::int64_t begin = 0; begin < rows.size; begin += kRowBlock) {
    const std::int64_t size = rows.size - begin < kRowBlock ? rows.size - begin : kRowBlock;
    T* const block = static_cast<T*>(sum) + begin;
    const T* carry = decay == 0 ? nullptr : block;
    if (decay != 0 && decay != 1) {
      const void* const row = block;
      add_group<T, kSum, kSum>(&row, &factor, 1, nullptr, block, size);
    }
    groups.visit<T, D>(begin, [&](const void* const* group, const T* factors, int count, bool) {
      add_group<T, D, kSum>(group, factors, count, carry, block, size);
      carry = block;
    });
  }
}

void accumulate(const Rows& rows, const double* coefficient, double decay, ZeroRows zero_rows, void* sum);
void accumulate(const Rows& rows, const double* coefficient, double decay, ZeroRows zero_rows, void* sum) {
  switch (rows.dtype) {
    case DType::float32:
      return accumulate_rows<float, DType::float32>(rows, coefficient, decay, zero_rows, sum);
    case DType::bfloat16:
      return accumulate_rows<float, DType::bfloat16>(rows, coefficient, decay, zero_rows, sum);
    case DType::float16:
      return accumulate_rows<float, DType::float16>(rows, coefficient, decay, zero_rows, sum);
    case DType::float64:
      return accumulate_rows<double, DType::float64>(rows, coefficient, decay, zero_rows, sum);
  }
}

}  // namespace bucket_moo::isa::BUCKET_MOO_ISA
