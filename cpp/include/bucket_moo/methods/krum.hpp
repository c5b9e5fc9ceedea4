// (Multi-)Krum: the mean of the gradients that lie closest to their neighbours.
//
// Source: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine learning with adversaries: Byzantine tolerant gradient
// descent", NeurIPS 2017, sec. 3 and 4.
#ifndef BUCKET_MOO_METHODS_KRUM_HPP
#define BUCKET_MOO_METHODS_KRUM_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/method_traits.hpp>
#include <bucket_moo/problem.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/solution.hpp>

namespace bucket_moo {

/// w = 1/m on the m gradients of the lowest score, the sum of the squared distances to the k-f-2 nearest others; f is
/// n_byzantine, m is n_selected, at most k. Ties go to the lowest index, so that copies of a gradient need not share
/// alike. Distances are |g_i|² + |g_j|² - 2 <g_i, g_j>, at least 0. Unchanged by g -> t g. May conflict.
///
/// Fallback: fewer than f + 3 objectives have no neighbours to count: the weights are equal.
///
/// \param weights [k], out: on the simplex
/// \param scratch k² + 1.5 k + 1 doubles. Cost: k² (k/4) comparisons.
template <class Lanes>
BUCKET_MOO_HD Solution solve_krum(Lanes lanes, const KrumOptions& options, const Problem& problem, double* weights,
                                  Scratch scratch) {
  const int k = problem.k;
  const double* const gram = problem.gram;
  const int byzantine = options.n_byzantine > 0 ? options.n_byzantine : 0;
  Solution solution;
  if (byzantine > k - 3) {
    for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] = 1.0 / k;
    lanes.sync();
    solution.status = Status::fallback;
    return solution;
  }
  const int neighbours = k - byzantine - 2;
  const int positive = options.n_selected > 1 ? options.n_selected : 1;
  const int selected = positive < k ? positive : k;

  double* const rows = scratch.doubles(k * k);
  double* const score = scratch.doubles(k);
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    double* const nearest = rows + i * k;  // ascending: a sum in this order does not depend on that of the objectives
    int found = 0;
    for (int j = 0; j < k; ++j) {
      if (j == i) continue;
      const double square = (gram[i * k + i] - gram[i * k + j]) + (gram[j * k + j] - gram[i * k + j]);
      const double distance = square > 0.0 ? square : 0.0;
      if (found == neighbours && !(distance < nearest[found - 1])) continue;
      int at = found < neighbours ? found++ : found - 1;
      for (; at > 0 && distance < nearest[at - 1]; --at) nearest[at] = nearest[at - 1];
      nearest[at] = distance;
    }
    double total = 0.0;
    for (int t = 0; t < found; ++t) total += nearest[t];
    score[i] = total;
  }
  lanes.sync();

  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    int before = 0;
    for (int j = 0; j < k; ++j) before += score[j] < score[i] || (score[j] == score[i] && j < i) ? 1 : 0;
    weights[i] = before < selected ? 1.0 / selected : 0.0;
  }
  lanes.sync();
  return solution;
}

struct KrumMethod : MethodTraits<MethodId::krum> {
  static constexpr const char* kName = "Krum";
  static constexpr int kScratchMatrices = 1;

  template <class Visitor>
  static void visit_options(Visitor& visit, Method& method) {
    visit.integer("n_byzantine", method.krum.n_byzantine, 0);
    visit.integer("n_selected", method.krum.n_selected, 1);
  }

  template <class Lanes>
  BUCKET_MOO_HD static Solution solve(Lanes lanes, const Method& method, const Problem& problem, double*,
                                      double* weights, Scratch scratch) {
    return solve_krum(lanes, method.krum, problem, weights, scratch);
  }
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHODS_KRUM_HPP
