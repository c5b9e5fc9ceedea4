#pragma once

#include "kernels/isa/convert.hpp"

namespace bucket_moo::isa::BUCKET_MOO_ISA {

/// out[i] = (carry[i] +) c[0] * row_0[i] + ... + c[G-1] * row_{G-1}[i], added from left to right in T, rounded to Out.
/// Multiplied and added in two roundings for every instruction set: see combine.hpp on replicas.
/// Each element is read before it is written, so out may be one of the rows, or carry.
/// Ahead: elements between the blocks of a row that follow one another, for prefetch.
template <typename T, DType In, DType Out, int G, bool Carry, int Ahead>
class WeightedSum {
 public:
  BUCKET_MOO_INLINE WeightedSum(const void* const* rows, const T* coefficient, const T* carry, void* out)
      : carry_(carry), out_(static_cast<Storage<Out>*>(out)) {
    for (int g = 0; g < G; ++g) {
      row_[g] = static_cast<const Storage<In>*>(rows[g]);
      coefficient_[g] = Register<T>{} + coefficient[g];
    }
  }

  BUCKET_MOO_INLINE void run(std::int64_t size) const {
    std::int64_t i = 0;
    for (; i + L <= size; i += L) whole(i);
    if (i < size) part(i, static_cast<std::size_t>(size - i));
  }

 private:
  static constexpr int L = kWidth<T>;
  using Input = Vec<Storage<In>, L>;

  BUCKET_MOO_INLINE void whole(std::int64_t i) const {
    Register<T> sum = start();
    if constexpr (Carry) sum = load<Register<T>>(carry_ + i);
    for (int g = 0; g < G; ++g) {
      prefetch(row_[g] + i, Ahead * static_cast<int>(sizeof(Storage<In>)));
      sum = sum + coefficient_[g] * widen<T, In>(load<Input>(row_[g] + i));
    }
    store(out_ + i, narrow<T, Out>(sum));
  }

  /// The last few elements, through the same registers, so that an element's bits do not depend on its place.
  BUCKET_MOO_INLINE void part(std::int64_t i, std::size_t rest) const {
    Register<T> sum = start();
    if constexpr (Carry) __builtin_memcpy(&sum, carry_ + i, rest * sizeof(T));
    for (int g = 0; g < G; ++g) {
      Input x{};
      __builtin_memcpy(&x, row_[g] + i, rest * sizeof(Storage<In>));
      sum = sum + coefficient_[g] * widen<T, In>(x);
    }
    const auto result = narrow<T, Out>(sum);
    __builtin_memcpy(out_ + i, &result, rest * sizeof(Storage<Out>));
  }

  /// -0, the number that changes nothing it is added to (+0 would turn a lone -0 into +0).
  static BUCKET_MOO_INLINE Register<T> start() { return -Register<T>{}; }

  const Storage<In>* row_[G];
  Register<T> coefficient_[G];
  const T* carry_;
  Storage<Out>* out_;
};

/// \param rows   [G] pointers to the first of `size` elements each
/// \param carry  [size] partial sum to go on from; null to start
template <typename T, DType In, DType Out, int G, int Ahead>
void weighted_sum(const void* const* rows, const T* coefficient, const T* carry, void* out, std::int64_t size) {
  if (carry != nullptr) {
    WeightedSum<T, In, Out, G, true, Ahead>(rows, coefficient, carry, out).run(size);
  } else {
    WeightedSum<T, In, Out, G, false, Ahead>(rows, coefficient, carry, out).run(size);
  }
}

}  // namespace bucket_moo::isa::BUCKET_MOO_ISA
