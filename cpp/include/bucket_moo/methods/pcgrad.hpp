// PCGrad: each gradient is projected, in a random order, off those it conflicts with.
//
// Source: Yu, Kumar, Gupta, Levine, Hausman, Finn, "Gradient surgery for multi-task learning", NeurIPS 2020,
// algorithm 1.
#ifndef BUCKET_MOO_METHODS_PCGRAD_HPP
#define BUCKET_MOO_METHODS_PCGRAD_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/encounter_order.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/method_traits.hpp>
#include <bucket_moo/problem.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/solution.hpp>

namespace bucket_moo {

/// w = mean (or sum) of the c_i, where c_i starts as e_i and for every other j, in an order that depends on (key, i):
/// p = (G c_i)_j; if p < 0, then c_ij -= p / G_jj. With three or more objectives the result may still conflict.
///
/// \param weights [k], out
/// \param scratch k² + all * k / 8 + 1 doubles. Cost: k³/4 multiply-adds and all * k random draws.
template <class Lanes>
BUCKET_MOO_HD void solve_pcgrad(Lanes lanes, const PcgradOptions& options, const Problem& problem, double* weights,
                                Scratch scratch) {
  const int k = problem.k;
  const double* const gram = problem.gram;
  double* const rows = scratch.doubles(k * k);
  unsigned char* const orders = scratch.bytes(k * problem.all);

  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    unsigned char* const order = orders + i * problem.all;
    const int others = load_encounter_order(problem, options.permutation, i, order);

    // row[j] is (G c_i)_j until j's turn, and c_ij from then on: each j has one turn.
    double* const row = rows + i * k;
    for (int j = 0; j < k; ++j) row[j] = gram[i * k + j];
    row[i] = 1.0;
    for (int t = 0; t < others; ++t) {
      const int j = order[t];
      const double added = row[j] < 0.0 && gram[j * k + j] > 0.0 ? -row[j] / gram[j * k + j] : 0.0;
      row[j] = added;
      if (added == 0.0) continue;
      for (int later = t + 1; later < others; ++later) row[order[later]] += added * gram[j * k + order[later]];
    }
  }
  lanes.sync();

  const double divisor = options.reduction == PcgradReduction::mean ? static_cast<double>(k) : 1.0;
  for (int j = lanes.lane(); j < k; j += lanes.count()) {
    double total = 0.0;
    for (int i = 0; i < k; ++i) total += rows[i * k + j];
    weights[j] = total / divisor;
  }
  lanes.sync();
}

struct PcgradMethod : MethodTraits<MethodId::pcgrad> {
  static constexpr const char* kName = "PCGrad";

  template <class Visitor>
  static void visit_options(Visitor& visit, Method& method) {
    visit.word("reduction", method.pcgrad.reduction, {{"mean", PcgradReduction::mean}, {"sum", PcgradReduction::sum}});
    visit.permutation(method.pcgrad.permutation);
  }

  template <class Lanes>
  BUCKET_MOO_HD static Solution solve(Lanes lanes, const Method& method, const Problem& problem, double*,
                                      double* weights, Scratch scratch) {
    solve_pcgrad(lanes, method.pcgrad, problem, weights, scratch);
    return Solution{};
  }
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHODS_PCGRAD_HPP
