// What test_methods checks, one file a question, and what its files share.
#ifndef BUCKET_MOO_TESTS_METHODS_CHECKS_HPP
#define BUCKET_MOO_TESTS_METHODS_CHECKS_HPP

#include <bucket_moo/solve.hpp>
#include <cmath>
#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "fixtures.hpp"

namespace method_checks {

using namespace fixtures;
using bucket_moo::Method;

inline constexpr Real kEps = bucket_moo::kEpsilon;

inline std::map<std::string, int> seen;  // statuses by method and family

inline std::size_t at(int i) { return static_cast<std::size_t>(i); }

inline Real norm(const Gramian& g, int i) { return std::sqrt(static_cast<Real>(g(i, i))); }

/// Σ |w_k| |g_k|: what the rounding of float64 weights is relative to.
inline Real length(const Gramian& g, const std::vector<Real>& w) {
  Real total = 0;
  for (int i = 0; i < g.k; ++i) total += std::fabs(w[at(i)]) * norm(g, i);
  return total;
}

/// What a float64 solution can reach: `goal`, and the rounding of the weights themselves.
inline double reachable(double goal, Real rounding, int k) {
  return goal + static_cast<double>((8 + k) * kEps * rounding);
}

inline bool starts(const std::string& text, const std::string& with) { return text.rfind(with, 0) == 0; }

/// Families without linear dependence beyond copies: all methods must find exactly what they promise.
inline bool regular(const std::string& family) {
  return family == "wishart" || starts(family, "common") || starts(family, "condition 1e2 ") ||
         family == "condition 1e2" || family == "condition 1e6" || starts(family, "condition 1e10") ||
         starts(family, "norms over") || family == "exact duplicates" || family == "all equal" || family == "zero rows";
}

/// Families that a float64 solution of 1e-8 must exist for.
inline bool easy(const std::string& family) { return regular(family) && !starts(family, "condition 1e10"); }

inline std::string method_name(MethodId id) { return bucket_moo::kMethodNames[static_cast<std::size_t>(id)]; }

inline Method of(MethodId id) { return {.id = id}; }

inline Answer counted(const Method& method, const std::string& family, const Gramian& g) {
  const Answer answer = solve(method, g);
  const int status = static_cast<int>(answer.solution.status);
  if (status != 0) ++seen[method_name(method.id) + " status " + std::to_string(status) + ": " + family];
  return answer;
}

// On one Gramian of a family.

/// UPGrad and DualProj: no conflict, complementarity.
void check_projections(const std::string& family, const Gramian& g, Worst& worst);

/// IMTLG and ConFIG: the update's cosines with the gradients, and its length.
void check_cosines(const std::string& family, const Gramian& g, Random& random, Worst& worst);

/// AlignedMTL: singular values.
void check_aligned(const std::string& family, const Gramian& g, Worst& worst);

/// NashMTL and FairGrad: the equation that they solve.
void check_equilibria(const std::string& family, const Gramian& g, Worst& worst);

/// Krum: the lowest scores.
void check_krum(const std::string& family, const Gramian& g);

/// Any method: scale, permutation, determinism, equal treatment of copies.
void check_invariants(const Method& method, const std::string& family, const Gramian& g, bool unique, Random& random,
                      Worst& worst);

// On Gramians of their own.

/// GradVac and Adasum against their papers' loops; smoothing; how long updates are.
void check_gradvac(Random& random, Worst& worst);
void check_adasum(Random& random, Worst& worst);
void check_smoothing(Random& random);
void check_lengths(Random& random, Worst& worst);

/// What every method promises: statuses, inactive objectives, extreme scales.
void check_contract(Random& random);

}  // namespace method_checks

#endif  // BUCKET_MOO_TESTS_METHODS_CHECKS_HPP
