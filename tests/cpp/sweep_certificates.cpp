// Certificates over many random Gramians, recomputed in long double, independently of the solvers: how many are above
// what is promised, and the worst value of each.
//
//   sweep_certificates [COUNT [SEED]]
//
// Every family of fixtures.hpp in turn; 2 to 64 objectives, mostly few. Exits non-zero if a promise is broken.
//
// When is there a conflict? In exact arithmetic when <g_k, d> < 0. Here <g_k, d> = Σ_j w_j G_kj is a sum of terms whose
// sizes are bounded by |g_k| Σ_j |w_j| |g_j|, so it is compared with that sum S_k. Three counts are kept:
//   any        <g_k, d> < 0 in long double: half of the gradients at right angles to d show this
//   rounding   < -(8 + K) eps64 S_k: not explained by writing the exact weights down in float64
//   conflict   < -1e-9 S_k: counts as broken. The update is stored in float32 at best, which alone moves <g_k, d> by
//              6e-8 S_k, so nothing smaller could be seen in an update.

#include <algorithm>
#include <bucket_moo/solve.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "fixtures.hpp"

namespace {

using namespace fixtures;
using bucket_moo::Method;

constexpr Real kEps = bucket_moo::kEpsilon;
constexpr double kConflict = 1e-9;
constexpr double kGap = 1e-9;
constexpr double kEquilibrium = 1e-8;

std::size_t at(int i) { return static_cast<std::size_t>(i); }

Real norm(const Gramian& g, int i) { return std::sqrt(static_cast<Real>(g(i, i))); }

/// One promise: how often it was checked, how often broken, the worst value.
struct Promise {
  long checked = 0;
  long above = 0;   // the figure in its name
  long broken = 0;  // more than is promised: `above`, less what rounding of the weights explains
  double worst = 0;
  std::string where;
  void add(double value, double goal, double allowed, const std::string& family, int k) {
    ++checked;
    if (!(value <= goal)) ++above;
    if (!(value <= allowed)) ++broken;
    if (value > worst || !(value == value)) {
      worst = value;
      where = family + ", K = " + std::to_string(k);
    }
  }
};

struct Conflicts {
  long solves = 0;
  long any = 0;
  long rounding = 0;
  long conflict = 0;
  std::map<std::string, long> not_ok;  // by family; the status says so
  double worst = 0;                    // -<g_k, d> / S_k
  std::string where;
};

/// What happens to Gramians in the precision of float32: nothing is promised there but status and finite weights.
struct Rounded {
  long solves = 0;
  long not_ok = 0;
  long large = 0;  // a weight above 1000
  double largest = 0;
};

std::map<std::string, Rounded> rounded_gramians;
std::map<std::string, Promise> promises;
std::map<std::string, Conflicts> conflicts;

/// \return the answer's weights
std::vector<Real> count_conflicts(const std::string& what, const Method& method, const std::string& family,
                                  const Gramian& g, bool only_if_ok = false) {
  const Answer answer = solve(method, g);
  const std::vector<Real> w = extended(answer.weights);
  Conflicts& seen = conflicts[what];
  const bool ok = answer.solution.status == Status::ok || answer.solution.status == Status::inactive;
  if (!ok) ++seen.not_ok[family];
  if (only_if_ok && !ok) return w;
  ++seen.solves;
  const std::vector<Real> product = times(g, w);
  Real length = 0;
  for (int i = 0; i < g.k; ++i) length += std::fabs(w[at(i)]) * norm(g, i);
  Real worst = 0;
  for (int i : active(g)) worst = std::max(worst, -product[at(i)] / (norm(g, i) * length));
  if (worst > 0) ++seen.any;
  if (worst > static_cast<Real>(8 + g.k) * kEps) ++seen.rounding;
  if (!(static_cast<double>(worst) <= kConflict)) ++seen.conflict;
  if (static_cast<double>(worst) > seen.worst) {
    seen.worst = static_cast<double>(worst);
    seen.where = family + ", K = " + std::to_string(g.k);
  }
  return w;
}

void check_mgda(const std::string& family, const Gramian& g, const std::vector<Real>& w) {
  const std::vector<Real> product = times(g, w);
  Real lowest = std::numeric_limits<Real>::infinity();
  for (int i : active(g)) lowest = std::min(lowest, product[at(i)]);
  const auto gap = static_cast<double>((inner(w, product) - lowest) / mean_diagonal(g));
  promises["MGDA: duality gap / mean diagonal <= 1e-9"].add(gap, kGap, kGap, family, g.k);
}

/// The primal-dual gap over |g_0|^2: any point of the simplex bounds the optimum from above; the best is taken of the
/// solution's own and MGDA's. `rounding` is how far the gap moves when exact weights are written down in float64.
void check_cagrad(const std::string& family, const Gramian& g, double c, const std::vector<Real>& w,
                  const std::vector<Real>& mgda) {
  const std::vector<int> on = active(g);
  const Real share = 1 / static_cast<Real>(on.size());
  std::vector<Real> u(at(g.k));
  for (int i : on) u[at(i)] = share;
  const std::vector<Real> b = times(g, u);
  const Real mean_square = inner(u, b);
  const std::string radius_name = "c = " + std::to_string(c).substr(0, 3);
  if (static_cast<double>(mean_square / mean_diagonal(g)) < 1e-12) {
    promises["CAGrad, " + radius_name + ": g_0 is rounding alone (no gap defined)"].add(0, kGap, kGap, family, g.k);
    return;
  }
  const Real radius = static_cast<Real>(c) * std::sqrt(mean_square);
  const auto bound = [&](const std::vector<Real>& l) {
    Real length = 0;
    for (int i : on) length += l[at(i)] * norm(g, i);
    const Real square = inner(l, times(g, l)) - 4 * kEps * length * length;  // below the rounding of G: counts as 0
    return inner(l, b) + radius * std::sqrt(std::max(Real{0}, square));
  };
  Real above = bound(mgda);
  std::vector<Real> l(w.size());
  Real mass = 0;
  Real length = 0;
  for (int i : on) {
    l[at(i)] = w[at(i)] - u[at(i)];
    mass += l[at(i)];
    length += w[at(i)] * norm(g, i);
  }
  if (mass > 0) {
    for (Real& x : l) x /= mass;
    above = std::min(above, bound(l));
  }
  const std::vector<Real> product = times(g, w);
  Real lowest = std::numeric_limits<Real>::infinity();
  for (int i : on) lowest = std::min(lowest, product[at(i)]);
  const auto gap = static_cast<double>((above - lowest) / mean_square);
  const auto rounding =
      static_cast<double>(static_cast<Real>(32 + g.k) * kEps * length * std::sqrt(mean_diagonal(g)) / mean_square);
  const std::string name = "CAGrad, " + radius_name + ": gap / |g_0|^2 <= 1e-9";
  if (family == "condition 1e20 and more" && c >= 1) {
    // Rounded to float64 such a Gramian is indefinite, and a large ball sees it: there is no optimum to compare with.
    promises[name + ", condition 1e20 (counted, not promised)"].add(gap, kGap, kGap, family, g.k);
    return;
  }
  const bool hard = rounding > kGap;  // no float64 weights could keep the promise for certain
  promises[name + (hard ? " + rounding of w, where that exceeds 1e-9" : "")].add(
      gap, kGap, hard ? kGap + rounding : kGap, family, g.k);
}

void check_nash(const std::string& name, const std::string& family, const Gramian& g) {
  Method method{.id = MethodId::nash_mtl};
  method.nash_mtl.max_norm = 0.0;
  const Answer answer = solve(method, g);
  const std::vector<Real> w = extended(answer.weights);
  const std::vector<Real> product = times(g, w);
  Real error = 0;
  for (int i : active(g)) error = std::max(error, std::fabs(w[at(i)] * product[at(i)] - 1));
  const bool solved = answer.solution.status == Status::ok;
  promises[name].add(solved ? static_cast<double>(error) : HUGE_VAL, kEquilibrium, kEquilibrium, family, g.k);
}

/// The same Gramian as float32 has it, slightly indefinite where gradients depend on each other.
void count_rounded(const std::string& what, const Method& method, const std::string& family, const Gramian& exact) {
  const Gramian g = rounded(exact);
  const Answer answer = solve(method, g);
  Rounded& seen = rounded_gramians[what + ": " + family];
  ++seen.solves;
  if (answer.solution.status != Status::ok) ++seen.not_ok;
  double largest = 0;
  for (const double w : answer.weights) largest = std::max(largest, std::fabs(w));
  seen.largest = std::max(seen.largest, largest);
  if (largest > 1e3) ++seen.large;
}

int draw_size(Random& random) {
  const auto kind = random() % 100;
  if (kind < 80) return 2 + static_cast<int>(random() % 15);
  if (kind < 97) return 17 + static_cast<int>(random() % 16);
  return 33 + static_cast<int>(random() % 32);
}

}  // namespace

int main(int argc, char** argv) {
  const long count = argc > 1 ? std::atol(argv[1]) : 2000;
  const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  Random random(seed);
  const std::vector<Family> all = families();
  long made = 0;
  for (long trial = 0; trial < count; ++trial) {
    const int k = draw_size(random);
    const Family& family = all[static_cast<std::size_t>(trial) % all.size()];
    const Gramian g = gramian(family.make(random, k));
    ++made;
    if (active(g).empty()) continue;

    const std::vector<Real> mgda = count_conflicts("MGDA", {.id = MethodId::mgda}, family.name, g);
    check_mgda(family.name, g, mgda);
    Method unit{.id = MethodId::mgda};
    unit.mgda.normalize = bucket_moo::Normalize::l2;
    count_conflicts("MGDA, l2", unit, family.name, g);
    count_conflicts("UPGrad", {.id = MethodId::upgrad}, family.name, g);
    count_conflicts("DualProj", {.id = MethodId::dualproj}, family.name, g);
    for (const double c : {0.4, 1.0, 1.5}) {
      Method method{.id = MethodId::cagrad};
      method.cagrad.c = c;
      const std::vector<Real> w =
          c < 1 ? extended(solve(method, g).weights)
                : count_conflicts("CAGrad, c = " + std::to_string(c).substr(0, 3), method, family.name, g);
      check_cagrad(family.name, g, c, w, mgda);
    }
    count_conflicts("NashMTL", {.id = MethodId::nash_mtl}, family.name, g);
    count_conflicts("FairGrad", {.id = MethodId::fairgrad}, family.name, g);
    count_conflicts("ConFIG, where solved", {.id = MethodId::config}, family.name, g, true);

    if (family.name != "norms over 8 decades" && family.name != "condition 1e20 and more") {
      count_rounded("UPGrad", {.id = MethodId::upgrad}, family.name, g);
      count_rounded("DualProj", {.id = MethodId::dualproj}, family.name, g);
      Method cagrad{.id = MethodId::cagrad};
      cagrad.cagrad.c = 1.5;
      count_rounded("CAGrad, c = 1.5", cagrad, family.name, g);
      cagrad.cagrad.c = 0.4;
      count_rounded("CAGrad, c = 0.4", cagrad, family.name, g);
      count_rounded("MGDA", {.id = MethodId::mgda}, family.name, g);
    }

    // Any condition number up to 1e6, and apart from it any spread of the norms up to 4 decades.
    const double exponent = 6.0 * std::uniform_real_distribution<double>()(random);
    const Gradients even = conditioned(random, k, std::pow(10.0, exponent));
    check_nash("NashMTL: |w_k (Gw)_k - 1| <= 1e-8, condition <= 1e6", "condition", gramian(even));
    Gradients spread = gaussian(random, k, 2 * k + 3);
    scale_rows_over(random, spread, 4 * std::uniform_real_distribution<double>()(random));
    check_nash("NashMTL: |w_k (Gw)_k - 1| <= 1e-8, norms over <= 4 decades", "norms", gramian(spread));
    Gradients both = even;
    scale_rows_over(random, both, 4 * std::uniform_real_distribution<double>()(random));
    check_nash("NashMTL: |w_k (Gw)_k - 1| <= 1e-8, both at once", "condition and norms", gramian(both));
  }

  std::printf("%ld Gramians, seed %llu\n\n", made, static_cast<unsigned long long>(seed));
  std::printf("promises: checked, above, broken; worst value\n");
  long broken = failures;
  for (const auto& [name, promise] : promises) {
    std::printf("  %-84s %7ld %6ld %6ld  %.2e  (%s)\n", name.c_str(), promise.checked, promise.above, promise.broken,
                promise.worst, promise.where.c_str());
    if (name.find("not promised") == std::string::npos) broken += promise.broken;
  }
  std::printf("\nsolves, with <g_k, d> < 0 for some k: any, beyond rounding, conflict; worst\n");
  for (const auto& [name, seen] : conflicts) {
    std::printf("  %-24s %7ld %7ld %6ld %6ld  %.2e  (%s)\n", name.c_str(), seen.solves, seen.any, seen.rounding,
                seen.conflict, seen.worst, seen.where.c_str());
    broken += seen.conflict;
  }
  std::printf("\nstatus not_converged or fallback, by family\n");
  for (const auto& [name, seen] : conflicts) {
    for (const auto& [family, times_seen] : seen.not_ok)
      std::printf("  %-24s %-40s %7ld\n", name.c_str(), family.c_str(), times_seen);
  }
  std::printf(
      "\nthe same Gramians rounded to float32 (not promised): solves, not ok, a weight > 1000; largest weight\n");
  for (const auto& [name, seen] : rounded_gramians) {
    if (seen.not_ok == 0 && seen.large == 0) continue;
    std::printf("  %-56s %7ld %6ld %6ld  %.1e\n", name.c_str(), seen.solves, seen.not_ok, seen.large, seen.largest);
  }
  std::printf("\n%ld promises broken\n", broken);
  return broken == 0 ? 0 : 1;
}
