// What is drawn from a RandomKey: permutations and the sketch's map.
#include <bucket_moo/sketch.hpp>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <numeric>
#include <vector>

#include "core/checks.hpp"

namespace core_checks {

void check_permutations(Worst& worst) {
  // Each of the 24 orders of 4 should come up equally often, over every part of the key.
  for (int part = 0; part < 4; ++part) {
    std::map<std::vector<int>, int> seen;
    constexpr int kDraws = 48000;
    for (int t = 0; t < kDraws; ++t) {
      RandomKey key{1, 2, 3};
      const auto value = static_cast<std::uint64_t>(t);
      if (part == 0) key.seed = value;
      if (part == 1) key.step = value;
      if (part == 2) key.bucket = value;
      std::vector<int> order(4);
      bucket_moo::permutation(key, part == 3 ? t : 0, 4, order.data());
      ++seen[order];
    }
    double chi_square = 0;
    for (const auto& [order, count] : seen) chi_square += (count - 2000.0) * (count - 2000.0) / 2000.0;
    check(seen.size() == 24, "all orders occur");
    check(chi_square < 60, "orders are equally likely");  // 23 degrees of freedom: P < 4e-5
    worst.add("permutation chi square, 23 degrees of freedom", chi_square);
  }
}

void check_sketch_map() {
  for (int exponent = -1; exponent < 63; ++exponent) {
    const std::int64_t width = exponent < 0 ? 0 : std::int64_t{1} << exponent;
    check(bucket_moo::is_sketch_width(width) == (exponent >= 6 && exponent <= 28), "powers of two from 64 to 2^28");
    if (exponent > 1) {
      check(!bucket_moo::is_sketch_width(width - 1) && !bucket_moo::is_sketch_width(width + 1), "no other widths");
    }
    check(!bucket_moo::is_sketch_width(-width), "no negative widths");
  }

  const RandomKey key{7, 8, 9};
  for (const std::int64_t width : {std::int64_t{64}, std::int64_t{1024}, bucket_moo::kMaxSketchWidth}) {
    const bucket_moo::SketchMap map(key, width);
    check(map.width() == width, "width is kept");
    // An XOR with a number below a power of two is a bijection of what is below it.
    for (std::int64_t run = 0; run < 2000; ++run) {
      check(map.flip(run) >= 0 && map.flip(run) < width, "flips are below the width");
    }
  }
  const bucket_moo::SketchMap narrow(key, 64);
  for (std::int64_t run = 0; run < 100; ++run) {
    std::vector<int> hits(64);
    for (std::int64_t place = 0; place < 64; ++place) ++hits[static_cast<std::size_t>(place ^ narrow.flip(run))];
    check(hits == std::vector<int>(64, 1), "every column has one element of a run");
  }

  // Each flip equally often, alone and against the run before; a chi square with 63 degrees of freedom, P(> 150) <
  // 1e-8.
  constexpr std::int64_t kRuns = 64 * 1000;
  std::vector<double> alone(64, -1000.0);
  std::vector<double> between(64, -1000.0);
  std::vector<int> set(64);
  for (std::int64_t run = 0; run < kRuns; ++run) {
    alone[static_cast<std::size_t>(narrow.flip(run))] += 1;
    between[static_cast<std::size_t>(narrow.flip(run) ^ narrow.flip(run + 1))] += 1;
    for (std::size_t bit = 0; bit < 64; ++bit) set[bit] += static_cast<int>(narrow.signs(run) >> bit & 1);
  }
  for (const std::vector<double>* counts : {&alone, &between}) {
    check(std::inner_product(counts->begin(), counts->end(), counts->begin(), 0.0) / 1000 < 150, "flips are uniform");
  }
  for (const int ones : set) check(std::abs(ones - kRuns / 2) < 800, "signs are fair");  // 126 is a standard error

  // Were signs and flips from one stream, these bits would agree in every word.
  const bucket_moo::SketchMap wide(key, bucket_moo::kMaxSketchWidth);
  std::int64_t agree = 0;
  for (std::int64_t run = 0; run < 4000; ++run) agree += ((narrow.signs(run) >> 32) & 1) == (wide.flip(run) & 1);
  check(agree > 1700 && agree < 2300, "signs and flips are from different streams");  // 32 is a standard error

  for (const RandomKey& other : {RandomKey{6, 8, 9}, RandomKey{7, 9, 9}, RandomKey{7, 8, 8}, RandomKey{8, 7, 9}}) {
    const bucket_moo::SketchMap map(other, bucket_moo::kMaxSketchWidth);
    bool same_signs = false;
    int same_flips = 0;
    for (std::int64_t run = 0; run < 100; ++run) {
      same_signs = same_signs || map.signs(run) == wide.signs(run);
      same_flips += map.flip(run) == wide.flip(run);
    }
    check(!same_signs && same_flips < 3, "another key, another map");
  }
  check(narrow.signs(5) == wide.signs(5) && narrow.flip(5) == (wide.flip(5) & 63), "widths share their draws");
}

}  // namespace core_checks
