// Certificates and invariants of the methods beyond Mean, MGDA, CAGrad and PCGrad (those: test_core.cpp), recomputed,
// in methods/, from the Gramian in long double, on every family of fixtures.hpp.
//
// Self-contained: exits non-zero if a check failed, and prints the worst value seen of each.

#include <algorithm>
#include <bucket_moo/solve.hpp>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <vector>

#include "methods/checks.hpp"

namespace {

using namespace method_checks;

void measure_time() {
  std::printf("time per solve, microseconds (median of 9 batches of 16 Wishart Gramians), K = 2, 8, 32, 64\n");
  Random random(1);
  for (int id = 0; id < bucket_moo::kMethods; ++id) {
    const Method method = of(static_cast<MethodId>(id));
    std::printf("  %-12s", method_name(method.id).c_str());
    for (const int k : {2, 8, 32, 64}) {
      std::vector<Gramian> problems;
      for (int i = 0; i < 16; ++i) problems.push_back(gramian(gaussian(random, k, 2 * k + 3)));
      Vector weights(at(k));
      Vector scratch(bucket_moo::solve_scratch_size(k));
      std::vector<double> times;
      const int repeats = k > 8 ? 4 : 64;
      for (int batch = 0; batch < 9; ++batch) {
        const std::clock_t start = std::clock();  // of this process: the machine may be shared
        for (int repeat = 0; repeat < repeats; ++repeat) {
          for (const Gramian& g : problems) {
            bucket_moo::solve(bucket_moo::HostLanes{}, method, RandomKey{}, k, g.entries.data(), weights.data(),
                              scratch.data());
          }
        }
        times.push_back(1e6 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC / (16 * repeats));
      }
      std::sort(times.begin(), times.end());
      std::printf(" %9.2f", times[4]);
    }
    std::printf("\n");
  }
}

}  // namespace

/// Arguments: trials per family and size (default 4), or "time" for timings alone.
int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "time") {
    measure_time();
    return 0;
  }
  const int trials = argc > 1 ? std::atoi(argv[1]) : 4;
  Worst worst;
  Random random(20260110);
  check_contract(random);
  check_gradvac(random, worst);
  check_adasum(random, worst);
  check_smoothing(random);
  check_lengths(random, worst);
  for (const Family& family : families()) {
    for (const int k : kSizes) {
      for (int trial = 0; trial < (k > 16 ? (trials + 2) / 3 : trials); ++trial) {
        const Gramian g = gramian(family.make(random, k));
        check_projections(family.name, g, worst);
        check_cosines(family.name, g, random, worst);
        check_aligned(family.name, g, worst);
        check_equilibria(family.name, g, worst);
        check_krum(family.name, g);
        for (int id = static_cast<int>(MethodId::upgrad); id < bucket_moo::kMethods; ++id) {
          // Ill-conditioned weights are not comparable to better than their condition number.
          const bool unique = family.unique && family.name != "condition 1e6" && family.name != "norms over 8 decades";
          check_invariants(of(static_cast<MethodId>(id)), family.name, g, unique, random, worst);
        }
      }
    }
  }
  std::printf("worst values\n");
  worst.print();
  for (const auto& [what, count] : seen) std::printf("  %-60s %d\n", what.c_str(), count);
  std::printf("%ld checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
