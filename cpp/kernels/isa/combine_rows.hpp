#pragma once

#include "kernels/isa/row_groups.hpp"
#include "kernels/normal_float32.hpp"

namespace bucket_moo::isa::BUCKET_MOO_ISA {

/// out[i] = from[i], rounded to Out.
template <typename T, DType Out>
void round_block(const T* from, Storage<Out>* out, std::int64_t size) {
  constexpr int L = kWidth<T>;
  std::int64_t i = 0;
  for (; i + L <= size; i += L) store(out + i, narrow<T, Out>(load<Register<T>>(from + i)));
  if (i == size) return;
  Register<T> last{};
  __builtin_memcpy(&last, from + i, static_cast<std::size_t>(size - i) * sizeof(T));
  const auto rounded = narrow<T, Out>(last);
  __builtin_memcpy(out + i, &rounded, static_cast<std::size_t>(size - i) * sizeof(Storage<Out>));
}

template <typename T, DType D, DType Out>
void combine_rows(const Rows& rows, const double* coefficient, ZeroRows zero_rows, void* out) {
  constexpr DType kPartial = kAccumulation<T>;
  Storage<Out>* const to = static_cast<Storage<Out>*>(out);
  const RowGroups groups(rows, coefficient, zero_rows);
  if (groups.empty()) {
    __builtin_memset(to, 0, static_cast<std::size_t>(rows.size) * sizeof *to);
    return;
  }
  alignas(64) T partial[kRowBlock];
  for (std::int64_t begin = 0; begin < rows.size; begin += kRowBlock) {
    const std::int64_t size = rows.size - begin < kRowBlock ? rows.size - begin : kRowBlock;
    const T* carry = nullptr;
    groups.visit<T, D>(begin, [&](const void* const* group, const T* factors, int count, bool last) {
      // `out` may be a row: its block is written only with the last group, when all rows' blocks have been read.
      if (D == Out && last) {
        add_group<T, D, D>(group, factors, count, carry, to + begin, size);
      } else {
        add_group<T, D, kPartial>(group, factors, count, carry, partial, size);
      }
      carry = partial;
    });
    // A pass of its own over what is in the cache: loops that add and round to another type would double the code.
    if constexpr (D != Out) round_block<T, Out>(partial, to + begin, size);
  }
}

inline bool all_normal_float32(const double* coefficient, int count) {
  for (int r = 0; r < count; ++r) {
    if (!normal_float32(coefficient[r])) return false;
  }
  return true;
}

template <DType D, DType Out>
void combine_narrow(const Rows& rows, const double* coefficient, ZeroRows zero_rows, void* out) {
  if (all_normal_float32(coefficient, rows.count)) {
    combine_rows<float, D, Out>(rows, coefficient, zero_rows, out);
  } else {
    combine_rows<double, D, Out>(rows, coefficient, zero_rows, out);
  }
}

inline void combine_float32(const Rows& rows, const double* coefficient, ZeroRows zero_rows, void* out,
                            DType out_dtype) {
  switch (out_dtype) {
    case DType::bfloat16:
      return combine_narrow<DType::float32, DType::bfloat16>(rows, coefficient, zero_rows, out);
    case DType::float16:
      return combine_narrow<DType::float32, DType::float16>(rows, coefficient, zero_rows, out);
    default:
      return combine_narrow<DType::float32, DType::float32>(rows, coefficient, zero_rows, out);
  }
}

void combine(const Rows& rows, const double* coefficient, ZeroRows zero_rows, void* out, DType out_dtype);
void combine(const Rows& rows, const double* coefficient, ZeroRows zero_rows, void* out, DType out_dtype) {
  switch (rows.dtype) {
    case DType::float32:
      return combine_float32(rows, coefficient, zero_rows, out, out_dtype);
    case DType::bfloat16:
      return combine_narrow<DType::bfloat16, DType::bfloat16>(rows, coefficient, zero_rows, out);
    case DType::float16:
      return combine_narrow<DType::float16, DType::float16>(rows, coefficient, zero_rows, out);
    case DType::float64:
      return combine_rows<double, DType::float64, DType::float64>(rows, coefficient, zero_rows, out);
  }
}

}  // namespace bucket_moo::isa::BUCKET_MOO_ISA
