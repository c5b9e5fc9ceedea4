#pragma once

#include <bucket_moo/sketch.hpp>

#include "kernels/isa/convert.hpp"

namespace bucket_moo::isa::BUCKET_MOO_ISA {

/// Columns that are summed up at a time: they stay in the first-level cache, together with the block of a run that is
/// being read and the next one.
inline constexpr int kSketchTile = 1024;

/// Runs that are added up before their sum goes to the sketch, so that rounding does not grow with n.
inline constexpr int kSketchChunk = 64;

/// The register with lane l holding what lane l ^ Flip held.
template <int Flip, int L, typename V>
BUCKET_MOO_INLINE V flip_lanes(V x) {
  if constexpr (Flip == 0) {
    return x;
  } else if constexpr (L == 2) {
    return __builtin_shufflevector(x, x, 0 ^ Flip, 1 ^ Flip);
  } else if constexpr (L == 4) {
    return __builtin_shufflevector(x, x, 0 ^ Flip, 1 ^ Flip, 2 ^ Flip, 3 ^ Flip);
  } else if constexpr (L == 8) {
    return __builtin_shufflevector(x, x, 0 ^ Flip, 1 ^ Flip, 2 ^ Flip, 3 ^ Flip, 4 ^ Flip, 5 ^ Flip, 6 ^ Flip,
                                   7 ^ Flip);
  } else {
    static_assert(L == 16);
    return __builtin_shufflevector(x, x, 0 ^ Flip, 1 ^ Flip, 2 ^ Flip, 3 ^ Flip, 4 ^ Flip, 5 ^ Flip, 6 ^ Flip, 7 ^ Flip,
                                   8 ^ Flip, 9 ^ Flip, 10 ^ Flip, 11 ^ Flip, 12 ^ Flip, 13 ^ Flip, 14 ^ Flip,
                                   15 ^ Flip);
  }
}

/// x with the lanes negated whose bits, from bit `first` of the word on, are set.
BUCKET_MOO_INLINE Register<float> apply_signs(Register<float> x, std::uint64_t word, int first) {
  constexpr int L = kWidth<float>;
  using Words = Vec<std::uint32_t, L>;
  Words lane_bit;
  for (int l = 0; l < L; ++l) lane_bit[l] = 1U << l;
  const Words bits = Words{} + static_cast<std::uint32_t>(word >> first);
  const Words negative = (Words)((bits & lane_bit) == lane_bit) & 0x80000000U;
  return (Register<float>)((Words)x ^ negative);
}

BUCKET_MOO_INLINE Register<double> apply_signs(Register<double> x, std::uint64_t word, int first) {
  constexpr int L = kWidth<double>;
  using Words = Vec<std::uint64_t, L>;
  Words lane_bit;
  for (int l = 0; l < L; ++l) lane_bit[l] = 1ULL << l;
  const Words bits = Words{} + (word >> first);
  const Words negative = (Words)((bits & lane_bit) == lane_bit) & 0x8000000000000000ULL;
  return (Register<double>)((Words)x ^ negative);
}

/// Where a block of a run lies and goes.
struct SketchBlock {
  std::int64_t first;  ///< its first element; a multiple of kSignsPerWord
  int size;            ///< its elements, a multiple of kSignsPerWord
  int flip;            ///< what places within it are XORed with to give columns of the tile
};

/// sum[place ^ block.flip] += the signed element at `place`, of the block at `from`. Not inlined: the loop is all there
/// is to it, and there is one for each permutation of lanes.
/// \param ahead  bytes from here to the block that is read next
template <typename T, DType D, int Flip>
__attribute__((noinline)) void add_block(const Storage<D>* from, std::int64_t ahead, const SketchMap& map,
                                         const SketchBlock& block, T* sum) {
  constexpr int L = kWidth<T>;
  constexpr int kWord = SketchMap::kSignsPerWord;
  const int flip = block.flip & ~(L - 1);
  for (int i = 0; i < block.size; i += kWord) {
    const std::uint64_t word = map.signs((block.first + i) / kWord);
#pragma GCC unroll 32
    for (int j = 0; j < kWord; j += L) {
      const Storage<D>* const at = from + i + j;
      prefetch(at, ahead);
      const Register<T> x = widen<T, D>(load<Vec<Storage<D>, L>>(at));
      T* const to = sum + ((i + j) ^ flip);
      store(to, load<Register<T>>(to) + flip_lanes<Flip, L>(apply_signs(x, word, j)));
    }
  }
}

/// add_block() for the lane permutation that the block's flip asks for.
template <typename T, DType D, int Flip = kWidth<T> - 1>
BUCKET_MOO_INLINE void add_block_of(const Storage<D>* from, std::int64_t ahead, const SketchMap& map,
                                    const SketchBlock& block, T* sum) {
  if constexpr (Flip > 0) {
    if ((block.flip & (kWidth<T> - 1)) < Flip) return add_block_of<T, D, Flip - 1>(from, ahead, map, block, sum);
  }
  add_block<T, D, Flip>(from, ahead, map, block, sum);
}

template <typename T, DType D>
void sketch_row(const void* row, std::int64_t n, const SketchMap& map, void* out) {
  const Storage<D>* const elements = static_cast<const Storage<D>*>(row);
  const std::int64_t width = map.width();
  const int tile = width < kSketchTile ? static_cast<int>(width) : kSketchTile;
  const std::int64_t runs = (n + width - 1) / width;
  alignas(64) T sum[kSketchTile];
  alignas(64) Storage<D> rest[kSketchTile];
  for (std::int64_t column = 0; column < width; column += tile) {
    T* const to = static_cast<T*>(out) + column;
    for (int c = 0; c < tile; ++c) to[c] = 0;
    for (std::int64_t begin = 0; begin < runs; begin += kSketchChunk) {
      const std::int64_t end = runs - begin < kSketchChunk ? runs : begin + kSketchChunk;
      for (int c = 0; c < tile; ++c) sum[c] = 0;
      const auto first_of = [&](std::int64_t run, std::int64_t flip) {
        return run * width + (column ^ (flip & ~static_cast<std::int64_t>(tile - 1)));
      };
      std::int64_t flip = map.flip(begin);
      for (std::int64_t run = begin; run < end; ++run) {
        const std::int64_t next_flip = map.flip(run + 1);
        const SketchBlock block{first_of(run, flip), tile, static_cast<int>(flip) & (tile - 1)};
        const std::int64_t ahead =
            (first_of(run + 1, next_flip) - block.first) * static_cast<std::int64_t>(sizeof(Storage<D>));
        flip = next_flip;
        if (block.first + tile <= n) {
          add_block_of<T, D>(elements + block.first, ahead, map, block, sum);
        } else if (block.first < n) {  // the end of the gradient, with zeros behind it
          __builtin_memset(rest, 0, sizeof rest);
          __builtin_memcpy(rest, elements + block.first, static_cast<std::size_t>(n - block.first) * sizeof rest[0]);
          add_block_of<T, D>(rest, 0, map, block, sum);
        }
      }
      for (int c = 0; c < tile; ++c) to[c] += sum[c];
    }
  }
}

void sketch(const void* row, std::int64_t n, DType dtype, const SketchMap& map, void* out);
void sketch(const void* row, std::int64_t n, DType dtype, const SketchMap& map, void* out) {
  switch (dtype) {
    case DType::float32:
      return sketch_row<float, DType::float32>(row, n, map, out);
    case DType::bfloat16:
      return sketch_row<float, DType::bfloat16>(row, n, map, out);
    case DType::float16:
      return sketch_row<float, DType::float16>(row, n, map, out);
    case DType::float64:
      return sketch_row<double, DType::float64>(row, n, map, out);
  }
}

}  // namespace bucket_moo::isa::BUCKET_MOO_ISA
