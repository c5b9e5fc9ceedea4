// From a Gramian to weights: the contract all methods share, and the dispatch to one of them.
#ifndef BUCKET_MOO_SOLVE_HPP
#define BUCKET_MOO_SOLVE_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/method_list.hpp>
#include <bucket_moo/methods/mean.hpp>
#include <bucket_moo/problem.hpp>
#include <bucket_moo/random.hpp>
#include <bucket_moo/rescaling.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/smoothing.hpp>
#include <bucket_moo/solution.hpp>
#include <bucket_moo/state_layout.hpp>
#include <cmath>
#include <cstddef>

namespace bucket_moo {

/// Doubles of scratch for k objectives: the active Gramian, the method's matrices, and vectors.
BUCKET_MOO_HD constexpr std::size_t solve_scratch_size_with(int matrices, int k) {
  return static_cast<std::size_t>(k) * static_cast<std::size_t>((1 + matrices) * k + 24) + 32;
}

/// Doubles of scratch that solve() needs for k objectives, whatever the method.
BUCKET_MOO_HD constexpr std::size_t solve_scratch_size(int k) {
  return solve_scratch_size_with(Methods::scratch_matrices(), k);
}

/// The same for one method.
BUCKET_MOO_HD constexpr std::size_t solve_scratch_size(MethodId id, int k) {
  return solve_scratch_size_with(Methods::scratch_matrices(id), k);
}

/// Where in a scratch of solve_scratch_size(id, k) the Gramian may lie: solve() has read it before the method runs, and
/// overwrites it.
BUCKET_MOO_HD constexpr std::size_t gramian_in_scratch(MethodId id, int k) {
  return solve_scratch_size(id, k) - static_cast<std::size_t>(k) * static_cast<std::size_t>(k);
}

/// Whether every entry of a [k, k] matrix is finite.
template <class Lanes>
BUCKET_MOO_HD bool all_finite(Lanes lanes, int k, const double* matrix) {
  bool bad = false;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k * k; i += lanes.count()) bad = bad || !(std::fabs(matrix[i]) <= kLargest);
  return !lanes.any(bad);
}

/// The power of two that brings the mean diagonal of the active objectives into [1/2, 1), for any scale that occurs. A
/// power of two, because rounding the entries of an ill-conditioned Gramian would change its small eigenvalues.
template <class Lanes>
BUCKET_MOO_HD double scale_factor(Lanes lanes, int k, const double* gramian, int active, const int* objective) {
  constexpr int kLargestExponent = 1000;  // the factor itself must neither overflow nor underflow
  double mean = 0.0;                      // divided before it is summed, so that it cannot overflow either
  BUCKET_MOO_UNROLL(1)
  for (int a = lanes.lane(); a < active; a += lanes.count()) mean += gramian[objective[a] * (k + 1)] / active;
  mean = lanes.sum(mean);
  int exponent = 0;
  std::frexp(mean, &exponent);
  exponent = exponent > kLargestExponent ? kLargestExponent : exponent;
  exponent = exponent < -kLargestExponent ? -kLargestExponent : exponent;
  return std::ldexp(1.0, -exponent);
}

/// For kernels, which have the registers of their most demanding branch: one method, known when compiling.
template <class M>
struct RunOneMethod {
  /// \param state as solve()
  template <class Lanes>
  BUCKET_MOO_HD Solution operator()(Lanes lanes, const Method& method, const Problem& problem, double* state,
                                    double* weights, Scratch scratch) const {
    return M::solve(lanes, method, problem, state, weights, scratch);
  }
};

/// Never called: solve_with() writes the weights of Mean, which counts inactive objectives too.
template <>
struct RunOneMethod<MeanMethod> {
  template <class Lanes>
  BUCKET_MOO_HD Solution operator()(Lanes, const Method&, const Problem&, double*, double*, Scratch) const {
    return Solution{};
  }
};

/// The method that method.id says, of a list.
template <class List>
struct RunAnyMethod;

template <class... Each>
struct RunAnyMethod<MethodList<Each...>> {
  template <class Lanes>
  BUCKET_MOO_HD Solution operator()(Lanes lanes, const Method& method, const Problem& problem, double* state,
                                    double* weights, Scratch scratch) const {
    Solution solution;
    static_cast<void>(((method.id == Each::kId &&
                        (solution = RunOneMethod<Each>{}(lanes, method, problem, state, weights, scratch), true)) ||
                       ...));
    return solution;
  }
};

/// The contract around a method; see solve(), whose `run` chooses the method at run time.
template <class Run, class Lanes>
BUCKET_MOO_HD Solution solve_with(Run run, Lanes lanes, const Method& method, RandomKey key, int k,
                                  const double* gramian, double* weights, double* scratch, double* state) {
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
  BUCKET_MOO_UNROLL(4)
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
  const bool smooth = state != nullptr && smooths(method.smoothing);
  const std::size_t past = pair_state_size(method.id, k);
  if (method.id == MethodId::mean) {
    solve_mean(lanes, method.mean, k, weights);
    if (smooth) smooth_weights(lanes, method.smoothing, k, slot, weights, state + past);
    return solution;
  }
  if (active == 0) {
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) weights[i] = 0.0;
    lanes.sync();
    solution.status = Status::inactive;
    return solution;
  }

  const double unit = scale_factor(lanes, k, gramian, active, objective);
  BUCKET_MOO_UNROLL(1)
  for (int a = lanes.lane(); a < active; a += lanes.count()) {
    BUCKET_MOO_UNROLL(4)
    for (int b = 0; b < active; ++b) {
      const int i = objective[a];
      const int j = objective[b];
      gram[a * active + b] = 0.5 * (unit * gramian[i * k + j] + unit * gramian[j * k + i]);
    }
  }
  lanes.sync();

  const Problem problem{key, k, slot, active, objective, gram, unit};
  solution = run(lanes, method, problem, state, solved, memory);

  solution.active = active;
  bool bad = false;
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < active; i += lanes.count()) bad = bad || !(std::fabs(solved[i]) <= kLargest);
  const bool broken = lanes.any(bad);  // only what is not a Gramian at all gets here
  if (broken || !(solution.residual >= 0.0)) solution.residual = kInfinity;
  if (broken || (solution.status == Status::ok && !(solution.residual <= Methods::tolerance(method.id)))) {
    solution.status = Status::not_converged;
  }
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    const double value = broken ? 1.0 / active : (slot[i] >= 0 ? solved[slot[i]] : 0.0);
    weights[i] = slot[i] >= 0 ? value : 0.0;
  }
  lanes.sync();
  if (smooth) smooth_weights(lanes, method.smoothing, k, slot, weights, state + past);
  return solution;
}

/// Solves for the weights of one bucket.
///
/// In this order, for every method: a NaN or Inf anywhere gives the plain mean over all K objectives; the Gramian is
/// symmetrised; objectives with a zero gradient (G_kk == 0) are left out and get weight 0, except by Mean, which counts
/// all; the rest is divided by its mean diagonal up to a power of two, so that the method sees no scale, which NashMTL
/// and FairGrad put back afterwards. Weights are smoothed, and then rescaled. They are finite, whatever the input.
///
/// \param lanes    HostLanes or WarpLanes; all lanes call with the same arguments
/// \param method   which method, with which options
/// \param key      seed, step and bucket: all that the random order of PCGrad and GradVac depends on
/// \param k        objectives, 1 <= k <= kMaxObjectives
/// \param gramian  [k, k], G_ij = <g_i, g_j>; read only
/// \param weights  [k], out: the update is Σ_k weights[k] g_k. Visible to all lanes on return
/// \param scratch  [solve_scratch_size(method.id, k)], contents irrelevant
/// \param state    [state_size(method, k)], in and out, of this bucket; all zeros when fresh. By objective, so that it
///                 stays valid when objectives come and go; a step without a finite Gramian leaves it alone. nullptr:
///                 every step is a first step
/// \return status, iterations, active objectives and the method's relative certificate
///
/// Neither allocates nor throws; ends after a bounded number of operations for any input. Reentrant. The same inputs
/// give the same bits under the same lane policy.
template <class Lanes>
BUCKET_MOO_HD Solution solve(Lanes lanes, const Method& method, RandomKey key, int k, const double* gramian,
                             double* weights, double* scratch, double* state = nullptr) {
  Solution solution = solve_with(RunAnyMethod<Methods>{}, lanes, method, key, k, gramian, weights, scratch, state);
  if (rescales(method.length)) rescale_weights(lanes, method.length, k, gramian, weights, &solution);
  return solution;
}

/// solve() for one method of the list, known when compiling, whatever method.id says. The Gramian may lie in the
/// scratch, at gramian_in_scratch(), and is lost then; so rescale_weights() is left to the caller.
template <class M, class Lanes>
BUCKET_MOO_HD Solution solve_one(Lanes lanes, Method method, RandomKey key, int k, const double* gramian,
                                 double* weights, double* scratch, double* state = nullptr) {
  method.id = M::kId;
  return solve_with(RunOneMethod<M>{}, lanes, method, key, k, gramian, weights, scratch, state);
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_SOLVE_HPP
