// Properties of the core on random Gramians of every family we know to be hard. Certificates are recomputed, in core/,
// from the Gramian in long double, independently of the solvers.
//
// Self-contained: exits non-zero if a check failed, and prints the worst value seen of each.

#include <algorithm>
#include <bucket_moo/solve.hpp>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <utility>
#include <vector>

#include "core/checks.hpp"

namespace {

using namespace core_checks;

void measure_time() {
  std::printf("time per solve, microseconds (median of 9 batches of 16 Wishart Gramians)\n");
  Random random(1);
  const std::vector<std::pair<std::string, bucket_moo::Method>> methods{
      {"mgda", mgda()}, {"cagrad", cagrad(0.4)}, {"pcgrad", {.id = MethodId::pcgrad}}};
  for (const auto& [name, method] : methods) {
    for (const int k : {2, 8, 32, 64}) {
      std::vector<Gramian> problems;
      for (int i = 0; i < 16; ++i) problems.push_back(gramian(gaussian(random, k, 2 * k + 3)));
      Vector weights(static_cast<std::size_t>(k));
      Vector scratch(bucket_moo::solve_scratch_size(k));
      std::vector<double> times;
      for (int batch = 0; batch < 9; ++batch) {
        const std::clock_t start = std::clock();  // of this process: the machine may be shared
        for (int repeat = 0; repeat < 16; ++repeat) {
          for (const Gramian& g : problems) {
            bucket_moo::solve(bucket_moo::HostLanes{}, method, RandomKey{}, k, g.entries.data(), weights.data(),
                              scratch.data());
          }
        }
        times.push_back(1e6 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC / 256);
      }
      std::sort(times.begin(), times.end());
      std::printf("  %-8s K=%-3d %9.2f\n", name.c_str(), k, times[4]);
    }
  }
}

}  // namespace

/// Argument: trials per family and size (default 6).
int main(int argc, char** argv) {
  const int trials = argc > 1 ? std::atoi(argv[1]) : 6;
  Worst worst;
  check_contract();
  check_permutations(worst);
  check_sketch_map();
  Random random(20240607);
  for (const Family& family : families()) {
    for (const int k : kSizes) {
      for (int trial = 0; trial < (k > 16 ? (trials + 2) / 3 : trials); ++trial) {
        const Gramian g = gramian(family.make(random, k));
        check_mgda(family.name, g, family.unique, random, worst);
        for (const double c : {0.1, 0.4, 1.0, 3.0}) {
          // Such a Gramian is indefinite at the level that a large ball is sensitive to.
          if (c > 1.0 && family.name == "condition 1e20 and more") continue;
          check_cagrad(family.name, g, c, family.unique, random, worst);
        }
        check_pcgrad(family.name, g, random, worst);
      }
    }
  }
  std::printf("worst values\n");
  worst.print();
  measure_time();
  std::printf("%ld checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
