// IMTL-G: the update whose projections onto all gradients are equally long.
//
// Source: Liu, Li, Kuang, et al., "Towards impartial multi-task learning", ICLR 2021, sec. 3.1.
#ifndef BUCKET_MOO_METHODS_IMTLG_HPP
#define BUCKET_MOO_METHODS_IMTLG_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/cosine_system.hpp>
#include <bucket_moo/cosines.hpp>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/linear_algebra.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/method_traits.hpp>
#include <bucket_moo/problem.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/solution.hpp>
#include <cmath>

namespace bucket_moo {

/// w = v / Σv with v = D⁻¹ C⁺ 1; D the norms and C the cosines.
///
/// Not a guarantee against conflict: where Σv < 0, all projections are negative alike. Unchanged by g -> t g.
///
/// Fallback: where |Σv| <= 1e-6 Σ|v| the weights are equal. Where no combination has equal projections (0 in the hull
/// of the unit gradients, say), w is the formula's: nearest to it in least squares.
///
/// \param weights [k], out: of sum 1
/// \return residual: the largest difference between a cosine <g_k, d> / (|g_k| |d|) and their common value
template <class Lanes>
BUCKET_MOO_HD Solution solve_imtlg(Lanes lanes, const ImtlgOptions&, const Problem& problem, double* weights,
                                   Scratch scratch) {
  constexpr double kSmallestSum = 1e-6;
  const int k = problem.k;
  double* const cosine = problem.gram;  // in place: the eigensolver needs the room
  double* const inverse = scratch.doubles(k);
  double* const target = scratch.doubles(k);
  double* const image = scratch.doubles(k);
  load_cosines(lanes, k, problem.gram, cosine, inverse);
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) target[i] = 1.0;
  const CosineSolution found = solve_cosine_system(lanes, k, cosine, target, weights, image, scratch);

  Solution solution;
  solution.residual = found.residual;
  if (!found.exact) solution.status = Status::fallback;
  double total = 0.0;
  double size = 0.0;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    weights[i] *= inverse[i];
    total += weights[i];
    size += std::fabs(weights[i]);
  }
  lanes.reduce(Sum{total}, Sum{size});
  const bool vanishes = !(std::fabs(total) > kSmallestSum * size);
  if (vanishes) solution.status = Status::fallback;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] = vanishes ? 1.0 / k : weights[i] / total;
  lanes.sync();
  return solution;
}

struct ImtlgMethod : MethodTraits<MethodId::imtlg> {
  static constexpr const char* kName = "IMTLG";
  static constexpr int kScratchMatrices = 3;

  template <class Lanes>
  BUCKET_MOO_HD static Solution solve(Lanes lanes, const Method& method, const Problem& problem, double*,
                                      double* weights, Scratch scratch) {
    return solve_imtlg(lanes, method.imtlg, problem, weights, scratch);
  }
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHODS_IMTLG_HPP
