#pragma once

#include "kernels/isa/dot_tile.hpp"
#include "kernels/isa/exact_products.hpp"
#include "kernels/isa/objective_block.hpp"

namespace bucket_moo::isa::BUCKET_MOO_ISA {

template <typename T, DType D>
void gramian_rows(const Rows& rows, const ObjectiveMap& map, double* out) {
  const int k = map.k;
  for (int i = 0; i < k * k; ++i) out[i] = 0;
  const ObjectiveSlots slots = number_objectives(rows, map);
  const int count = slots.count;
  if (count == 0) return;

  constexpr std::int64_t kBlock = kGramianBlock<T>;
  alignas(64) T panel[kMaxObjectives * kBlock];
  double entries[kMaxObjectives * kMaxObjectives];
  const T* gradient[kMaxObjectives];
  [[maybe_unused]] NonFinite non_finite;
  for (std::int64_t begin = 0; begin < rows.size; begin += kBlock) {
    const Span span{begin, rows.size - begin < kBlock ? rows.size - begin : kBlock};
    objective_block<T, D>(rows, map, slots, span, panel, kBlock, gradient);
    dot_triangle<T>(gradient, count, padded(span.size), entries);
    if constexpr (D != DType::float64) repair<D>(rows, map, slots, span, entries, &non_finite);
    for (int i = 0; i < count; ++i) {
      double* const to = out + slots.objective[i] * k;
      for (int j = i; j < count; ++j) to[slots.objective[j]] += entries[i * count + j];
    }
  }
  for (int i = 0; i < k; ++i) {
    for (int j = 0; j < i; ++j) out[i * k + j] = out[j * k + i];
  }
}

void gramian(const Rows& rows, const ObjectiveMap& map, double* out);
void gramian(const Rows& rows, const ObjectiveMap& map, double* out) {
  switch (rows.dtype) {
    case DType::float32:
      return gramian_rows<float, DType::float32>(rows, map, out);
    case DType::bfloat16:
      return gramian_rows<float, DType::bfloat16>(rows, map, out);
    case DType::float16:
      return gramian_rows<float, DType::float16>(rows, map, out);
    case DType::float64:
      return gramian_rows<double, DType::float64>(rows, map, out);
  }
}

}  // namespace bucket_moo::isa::BUCKET_MOO_ISA
