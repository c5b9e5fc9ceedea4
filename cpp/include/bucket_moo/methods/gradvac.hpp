// GradVac: PCGrad towards a moving target: pairs of gradients are brought to the cosine they usually have.
//
// Source: Wang, Tsvetkov, Firat, Cao, "Gradient vaccine: investigating and improving multi-task optimization in
// massively multilingual models", ICLR 2021, algorithm 1.
#ifndef BUCKET_MOO_METHODS_GRADVAC_HPP
#define BUCKET_MOO_METHODS_GRADVAC_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/encounter_order.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/method_traits.hpp>
#include <bucket_moo/problem.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/solution.hpp>
#include <cmath>

namespace bucket_moo {

/// w = mean of the c_i, where c_i starts as e_i and for every other j, in an order that depends on (key, i): with ρ the
/// cosine of Σ c_il g_l and g_j, and φ = φ_ij the target,
///   ρ < φ: c_ij += |c_i| (φ √(1-ρ²) - ρ √(1-φ²)) / (|g_j| √(1-φ²)), which makes the cosine φ;
///   φ_ij <- (1-β) φ + β ρ, in any case.
/// Fresh targets are 0, and with them this is PCGrad: a first step, β = 0, or no state. May conflict. Unchanged by
/// g -> t g.
///
/// \param phi     [all, all] targets by objective, in and out, all zero when fresh; or nullptr: stay 0. Only pairs of
///                active objectives are read and written
/// \param weights [k], out
/// \param scratch k² + all * k / 8 + 1 doubles. Cost: k³/2 multiply-adds and all * k random draws.
template <class Lanes>
BUCKET_MOO_HD void solve_gradvac(Lanes lanes, const GradVacOptions& options, const Problem& problem, double* phi,
                                 double* weights, Scratch scratch) {
  // Beyond it (an angle of 1e-3) a target asks for thousands of times the gradient: g_j's copy, not its direction.
  constexpr double kLargestTarget = 1.0 - 5e-7;
  const int k = problem.k;
  const int all = problem.all;
  const double* const gram = problem.gram;
  const double beta = options.beta >= 0.0 && options.beta <= 1.0 ? options.beta : 0.5;
  double* const rows = scratch.doubles(k * k);
  unsigned char* const orders = scratch.bytes(k * all);

  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    unsigned char* const order = orders + i * all;
    const int others = load_encounter_order(problem, options.permutation, i, order);
    // row[j] is <Σ c_il g_l, g_j> until j's turn, and c_ij from then on: each j has one turn.
    double* const row = rows + i * k;
    for (int j = 0; j < k; ++j) row[j] = gram[i * k + j];
    double square = row[i];             // |Σ c_il g_l|²
    double length = std::sqrt(square);  // Σ |c_il| |g_l|
    row[i] = 1.0;
    for (int t = 0; t < others; ++t) {
      const int j = order[t];
      const double product = row[j];
      const double norm = std::sqrt(gram[j * k + j]);
      row[j] = 0.0;
      // Where c_i has cancelled to rounding noise it has no direction.
      if (!(square > (k + 8) * kEpsilon * length * length) || !(norm > 0.0)) continue;
      const double size = std::sqrt(square);
      double rho = product / size / norm;
      rho = rho > 1.0 ? 1.0 : (rho < -1.0 ? -1.0 : rho);
      double* const stored = phi == nullptr ? nullptr : phi + problem.objective[i] * all + problem.objective[j];
      const double kept = stored != nullptr && std::fabs(*stored) <= 1.0 ? *stored : 0.0;
      if (stored != nullptr) *stored = (1.0 - beta) * kept + beta * rho;
      const double target = kept < kLargestTarget ? kept : kLargestTarget;
      if (!(rho < target)) continue;
      const double sine = std::sqrt((1.0 - target) * (1.0 + target));
      double added = -product / gram[j * k + j];
      if (target != 0.0) {
        added += sine > 0.0 ? size * target * std::sqrt((1.0 - rho) * (1.0 + rho)) / (norm * sine) : 0.0;
      }
      row[j] = added;
      length += std::fabs(added) * norm;
      square += added * (2.0 * product + added * gram[j * k + j]);
      for (int later = t + 1; later < others; ++later) row[order[later]] += added * gram[j * k + order[later]];
    }
  }
  lanes.sync();

  for (int j = lanes.lane(); j < k; j += lanes.count()) {
    double total = 0.0;
    for (int i = 0; i < k; ++i) total += rows[i * k + j];
    weights[j] = total / k;
  }
  lanes.sync();
}

struct GradVacMethod : MethodTraits<MethodId::gradvac> {
  static constexpr const char* kName = "GradVac";
  static constexpr bool kRemembersPairs = true;

  template <class Visitor>
  static void visit_options(Visitor& visit, Method& method) {
    visit.from_0_to_1("beta", method.gradvac.beta);
    visit.permutation(method.gradvac.permutation);
  }

  template <class Lanes>
  BUCKET_MOO_HD static Solution solve(Lanes lanes, const Method& method, const Problem& problem, double* state,
                                      double* weights, Scratch scratch) {
    solve_gradvac(lanes, method.gradvac, problem, state, weights, scratch);
    return Solution{};
  }
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHODS_GRADVAC_HPP
