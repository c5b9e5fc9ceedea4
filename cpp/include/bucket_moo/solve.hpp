// From a Gramian to weights: the contract all methods share, and the dispatch to one of them.
#ifndef BUCKET_MOO_SOLVE_HPP
#define BUCKET_MOO_SOLVE_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/methods/cagrad.hpp>
#include <bucket_moo/methods/mean.hpp>
#include <bucket_moo/methods/mgda.hpp>
#include <bucket_moo/methods/pcgrad.hpp>
#include <bucket_moo/random.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/solution.hpp>
#include <cmath>
#include <cstddef>

namespace bucket_moo {

/// Doubles of scratch that solve() needs for k objectives, whatever the method.
BUCKET_MOO_HD constexpr std::size_t solve_scratch_size(int k) {
  // The active Gramian; a factor (or PCGrad's rows); vectors.
  return static_cast<std::size_t>(k) * static_cast<std::size_t>(2 * k + 16) + 8;
}

/// Whether every entry of a [k, k] matrix is finite.
template <class Lanes>
BUCKET_MOO_HD bool all_finite(Lanes lanes, int k, const double* matrix) {
  double bad = 0.0;
  for (int i = lanes.lane(); i < k * k; i += lanes.count()) {
    if (!(std::fabs(matrix[i]) <= kLargest)) bad = 1.0;
  }
  return lanes.max(bad) == 0.0;
}

/// The power of two that brings the mean diagonal of the active objectives into [1/2, 1), for any scale that occurs. A
/// power of two, because rounding the entries of an ill-conditioned Gramian would change its small eigenvalues.
template <class Lanes>
BUCKET_MOO_HD double scale_factor(Lanes lanes, int k, const double* gramian, int active, const int* objective) {
  constexpr int kLargestExponent = 1000;  // the factor itself must neither overflow nor underflow
  double mean = 0.0;                      // divided before it is summed, so that it cannot overflow either
  for (int a = lanes.lane(); a < active; a += lanes.count()) mean += gramian[objective[a] * (k + 1)] / active;
  mean = lanes.sum(mean);
  int exponent = 0;
  std::frexp(mean, &exponent);
  exponent = exponent > kLargestExponent ? kLargestExponent : exponent;
  exponent = exponent < -kLargestExponent ? -kLargestExponent : exponent;
  return std::ldexp(1.0, -exponent);
}

/// Solves for the weights of one bucket.
///
/// In this order, for every method: a NaN or Inf anywhere gives the plain mean over all K objectives; the Gramian is
/// symmetrised; objectives with a zero gradient (G_kk == 0) are left out and get weight 0, except by Mean, which counts
/// all; the rest is divided by its mean diagonal up to a power of two, so that the method sees no scale.
///
/// \param lanes    HostLanes or WarpLanes; all lanes call with the same arguments
/// \param method   which method, with which options
/// \param key      seed, step and bucket: all that PCGrad's random order depends on
/// \param k        objectives, 1 <= k <= kMaxObjectives
/// \param gramian  [k, k], G_ij = <g_i, g_j>; read only
/// \param weights  [k], out: the update is Σ_k weights[k] g_k. Visible to all lanes on return
/// \param scratch  [solve_scratch_size(k)], contents irrelevant
/// \return status, iterations, active objectives and the method's relative certificate
///
/// Neither allocates nor throws; ends after a bounded number of operations for any input. Reentrant. The same inputs
/// give the same bits under the same lane policy.
template <class Lanes>
BUCKET_MOO_HD Solution solve(Lanes lanes, const Method& method, RandomKey key, int k, const double* gramian,
                             double* weights, double* scratch) {
  Solution solution;
  if (!all_finite(lanes, k, gramian)) {
    solve_mean(lanes, MeanOptions{}, k, weights);
    solution.status = Status::nonfinite;
    return solution;
  }

  Scratch memory(scratch);
  double* const gram = memory.doubles(k * k);
  double* const solved = memory.doubles(k);  // weights of the active objectives
  int* const objective = memory.ints(k);     // active place -> objective
  int* const slot = memory.ints(k);          // objective -> active place, or -1
  int active = 0;                            // counted alike by all lanes
  for (int i = 0; i < k; ++i) {
    const bool on = gramian[i * k + i] > 0.0;
    if (lanes.lane() == 0) {
      slot[i] = on ? active : -1;
      if (on) objective[active] = i;
    }
    active += on ? 1 : 0;
  }
  lanes.sync();
  solution.active = active;
  if (method.id == MethodId::mean) {
    solve_mean(lanes, method.mean, k, weights);
    return solution;
  }
  if (active == 0) {
    for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] = 0.0;
    lanes.sync();
    solution.status = Status::inactive;
    return solution;
  }

  const double unit = scale_factor(lanes, k, gramian, active, objective);
  for (int a = lanes.lane(); a < active; a += lanes.count()) {
    for (int b = 0; b < active; ++b) {
      const int i = objective[a];
      const int j = objective[b];
      gram[a * active + b] = 0.5 * (unit * gramian[i * k + j] + unit * gramian[j * k + i]);
    }
  }
  lanes.sync();

  switch (method.id) {
    case MethodId::mgda:
      solution = solve_mgda(lanes, method.mgda, active, gram, solved, memory);
      break;
    case MethodId::cagrad:
      solution = solve_cagrad(lanes, method.cagrad, active, gram, solved, memory);
      break;
    case MethodId::pcgrad:
      solve_pcgrad(lanes, method.pcgrad, key, k, slot, active, gram, objective, solved, memory);
      break;
    case MethodId::mean:
      break;
  }

  solution.active = active;
  if (!(solution.residual <= kCertificateTolerance)) solution.status = Status::not_converged;
  for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] = slot[i] >= 0 ? solved[slot[i]] : 0.0;
  lanes.sync();
  return solution;
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_SOLVE_HPP
