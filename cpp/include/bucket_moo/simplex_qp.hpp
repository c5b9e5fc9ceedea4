// Quadratic programme over a scaled simplex, in Gram form: minimise ½ xᵀGx + bᵀx over x >= 0, Σ x = mass.
//
// With b = 0 and mass = 1 this is the nearest point to the origin of a polytope with vertices g_k. An active-set method
// solves it exactly, up to rounding, for any K of interest; first-order methods stall on ill-conditioned G.
//
// Source: Wolfe, "Finding the nearest point in a polytope", Mathematical Programming 11, 1976. Unlike there:
// - steps are Newton corrections from the current x, so that repeating one is a step of iterative refinement;
// - the affine hull of the support is described by differences to one of its points, whose Gram matrix is positive
//   definite exactly when the support is affinely independent, however long or short the gradients;
// - an entering vertex that rounding makes dependent is exchanged along the dependency instead of being regularised.
#ifndef BUCKET_MOO_SIMPLEX_QP_HPP
#define BUCKET_MOO_SIMPLEX_QP_HPP

#include <bucket_moo/active_set.hpp>
#include <bucket_moo/config.hpp>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/linear_algebra.hpp>
#include <bucket_moo/scratch.hpp>
#include <cmath>

namespace bucket_moo {

/// The programme, its current point and the factorised support. Call start() once, then minimise(); set_mass() and
/// minimise() again re-solve from the last answer.
template <class Lanes>
class SimplexQp {
  using Support = ActiveSet<Lanes, 1>;  // rows: the edges of the other members, seen from the first one

 public:
  /// Doubles of scratch for k vertices.
  BUCKET_MOO_HD static constexpr int scratch_size(int k) { return Support::scratch_size(k) + 2 * k; }

  /// \param k      number of vertices, >= 1
  /// \param gram   [k, k] symmetric, finite, of any scale; read only
  /// \param linear [k] b, or nullptr for 0; every b_i is <g_i, g_0> for one vector g_0
  /// \param offset norm of g_0, or any bound on what b was summed from: sets the level of rounding noise
  /// \param x      [k], the point; written by start() and minimise()
  /// \param scratch scratch_size(k) doubles
  BUCKET_MOO_HD SimplexQp(Lanes lanes, int k, const double* gram, const double* linear, double offset, double* x,
                          Scratch scratch)
      : lanes_(lanes),
        k_(k),
        gram_(gram),
        linear_(linear),
        offset_(offset),
        x_(x),
        support_(lanes, k, scratch),
        gradient_(scratch.doubles(k)),
        norm_(scratch.doubles(k)) {}

  /// Moves to the best vertex, with the given mass > 0.
  BUCKET_MOO_HD void start(double mass) {
    mass_ = mass;
    Located best{kInfinity, k_};
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) {
      const double square = gram(i, i);
      const Located candidate{0.5 * mass * square + linear(i), i};
      best = comes_before(candidate, best) ? candidate : best;
      norm_[i] = std::sqrt(square > 0.0 ? square : 0.0);
    }
    const int first = lanes_.argmin(best).index;
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) x_[i] = i == first ? mass : 0.0;
    support_.start(first);  // which syncs
  }

  /// Scales the point to another mass > 0; the support and its factor stay.
  BUCKET_MOO_HD void set_mass(double mass) {
    const double ratio = mass / mass_;
    mass_ = mass;
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) x_[i] *= ratio;
    lanes_.sync();
  }

  /// Minimises from the current point, until no vertex violates optimality by more than rounding noise.
  /// \return changes of the support made. Cost: O(k²) each. Stops after a fixed number in any case.
  BUCKET_MOO_HD int minimise() {
    support_.forget_progress();
    const int cap = 16 * k_ + 64;
    int entering = -1;
    int corrections = 0;
    int iteration = 0;
    for (; iteration < cap; ++iteration) {
      update_gradient(mass_ / summed());
      support_.judge(value_, entering);
      const auto survey = support_.survey(*this);
      if (corrections < 2 && survey.imbalance > noise_) {
        ++corrections;
        entering = -1;
      } else if (survey.steepest.value < -noise_) {
        corrections = 0;
        entering = survey.steepest.index;
      } else {
        break;
      }
      descend(entering);
    }
    lanes_.sync();  // x
    return iteration;
  }

  /// Solves for the same support without the bound x >= 0: the affine minimiser of ½ qᵀGq over Σ q = 1.
  /// It is the rate of change of x per unit of mass.
  /// \param q [k], out; zero outside the support
  BUCKET_MOO_HD void minimise_affine(double* q) {
    const int base = support_[0];
    double* const step = support_.step();
    BUCKET_MOO_UNROLL(1)
    for (int s = 1 + lanes_.lane(); s < support_.size(); s += lanes_.count()) {
      step[s] = gram(base, base) - gram(support_[s], base);
    }
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) q[i] = 0.0;
    lanes_.sync();
    support_.factor().solve(step + 1);
    balance_step(1.0);
    BUCKET_MOO_UNROLL(1)
    for (int s = lanes_.lane(); s < support_.size(); s += lanes_.count()) q[support_[s]] = step[s];
    lanes_.sync();
  }

  BUCKET_MOO_HD double mass() const { return mass_; }

  /// [k] Gx + b, as of the end of minimise().
  BUCKET_MOO_HD const double* gradient() const { return gradient_; }

  /// Slope of the objective towards vertex i, per unit of a bound on the distance. Rounding noise in it is noise_.
  BUCKET_MOO_HD double slope(int i) const {
    const double distance = norm_[i] + radius_;
    return distance > 0.0 ? (gradient_[i] - level_) / distance : 0.0;
  }

 private:
  BUCKET_MOO_HD double gram(int i, int j) const { return gram_[i * k_ + j]; }
  BUCKET_MOO_HD double linear(int i) const { return linear_ == nullptr ? 0.0 : linear_[i]; }

  /// <g_i - g_base, g_j - g_base>
  BUCKET_MOO_HD double edge(int i, int j) const {
    const int base = support_[0];
    return (gram(i, j) - gram(i, base)) - (gram(base, j) - gram(base, base));
  }

  /// Below this, the squared distance of `i` to the hull of the support is rounding noise.
  BUCKET_MOO_HD double dependence_floor(int i) const {
    const int base = support_[0];
    return 4.0 * (support_.size() + 2) * kEpsilon * (gram(i, i) + gram(base, base));
  }

  /// Σ x
  BUCKET_MOO_HD double summed() const {
    double total = 0.0;
    BUCKET_MOO_UNROLL(1)
    for (int s = lanes_.lane(); s < support_.size(); s += lanes_.count()) total += x_[support_[s]];
    return lanes_.sum(total);
  }

  /// x := ratio x; gradient := Gx + b, the objective's value, and the quantities that optimality is judged by.
  BUCKET_MOO_HD void update_gradient(double ratio) {
    add_rows(
        lanes_, k_, support_.size(), [&](int i) { return linear(i); }, [&](int s) { return ratio * x_[support_[s]]; },
        [&](int s) { return gram_ + support_[s] * k_; }, gradient_);
    double length = 0.0;
    double product = 0.0;
    double value = 0.0;
    BUCKET_MOO_UNROLL(1)
    for (int s = lanes_.lane(); s < support_.size(); s += lanes_.count()) {
      const int j = support_[s];
      x_[j] *= ratio;  // read by this lane alone until the next sync()
      length += x_[j] * norm_[j];
      product += x_[j] * gradient_[j];
      value += 0.5 * x_[j] * (gradient_[j] + linear(j));
    }
    lanes_.reduce(Sum{length}, Sum{product}, Sum{value});
    value_ = value;
    level_ = product / mass_;
    radius_ = length / mass_;
    noise_ = (k_ + 8) * kEpsilon * (length + offset_);
  }

  /// Lets `entering` (or, if negative, nothing) into the support and minimises over it, dropping the vertices that hit
  /// zero on the way.
  BUCKET_MOO_HD void descend(int entering) {
    for (int guard = 0; guard <= k_ + 1; ++guard) {
      if (entering >= 0 && admit(entering)) entering = -1;
      if (entering < 0) {
        load_newton_step();
      } else {
        load_dependency();
      }
      const int blocking = support_.advance(entering, nullptr, x_);
      if (blocking < 0) break;
      support_.drop(blocking, nullptr, x_);
      if (support_.size() == 0) continue;
      if (blocking == 0) rebase();
      update_gradient_with(entering);
    }
  }

  /// The gradient with x on the support and, while one is pending, on the entering vertex.
  BUCKET_MOO_HD void update_gradient_with(int entering) {
    if (entering >= 0) support_.append(entering);  // there is room: a vertex was dropped just before
    update_gradient(1.0);
    if (entering >= 0) support_.pop();
  }

  /// Lets vertex i into the support; false if it is affinely dependent.
  BUCKET_MOO_HD bool admit(int i) {
    if (support_.size() == 0) {
      support_.append(i);
      return true;
    }
    load_column(i);
    return support_.append(i, edge(i, i), dependence_floor(i));
  }

  BUCKET_MOO_HD void load_column(int i) {
    double* const column = support_.column();
    BUCKET_MOO_UNROLL(1)
    for (int s = lanes_.lane(); s < support_.factor().size(); s += lanes_.count()) {
      column[s] = edge(support_[s + 1], i);
    }
    lanes_.sync();
  }

  /// step[0] := what makes the sum of the step `total`. Lane 0 alone reads it, so that no sync() is needed.
  BUCKET_MOO_HD void balance_step(double total) {
    double* const step = support_.step();
    double others = 0.0;
    BUCKET_MOO_UNROLL(1)
    for (int s = 1 + lanes_.lane(); s < support_.size(); s += lanes_.count()) others += step[s];
    others = lanes_.sum(others);
    if (lanes_.lane() == 0) step[0] = total - others;
  }

  /// step := the way to the minimiser over the affine hull of the support.
  BUCKET_MOO_HD void load_newton_step() {
    double* const step = support_.step();
    const double at_base = gradient_[support_[0]];
    BUCKET_MOO_UNROLL(1)
    for (int s = 1 + lanes_.lane(); s < support_.size(); s += lanes_.count()) {
      step[s] = at_base - gradient_[support_[s]];
    }
    lanes_.sync();
    support_.factor().solve(step + 1);
    balance_step(0.0);
  }

  /// step := minus the affine combination of the support that equals the entering vertex. Along it (with +1 for the
  /// vertex itself) the direction Σ x_k g_k does not move, up to noise, and the objective descends linearly.
  BUCKET_MOO_HD void load_dependency() {
    support_.load_dependency();
    balance_step(-1.0);
  }

  /// Chooses the shortest member as the base, which keeps cancellation in the edges small, and factorises anew.
  /// update_gradient() then syncs before the factor is used.
  BUCKET_MOO_HD void rebase() {
    Located shortest{kInfinity, k_};
    BUCKET_MOO_UNROLL(1)
    for (int s = lanes_.lane(); s < support_.size(); s += lanes_.count()) {
      const Located candidate{norm_[support_[s]], s};
      shortest = comes_before(candidate, shortest) ? candidate : shortest;
    }
    support_.swap_with_first(lanes_.argmin(shortest).index);
    Cholesky<Lanes>& factor = support_.factor();
    factor.clear();
    for (int s = 1; s < support_.size(); ++s) {
      const int vertex = support_[s];
      load_column(vertex);
      factor.append_independent(support_.column(), edge(vertex, vertex), dependence_floor(vertex));
    }
  }

  Lanes lanes_;
  int k_;
  const double* gram_;
  const double* linear_;
  double offset_;
  double* x_;
  Support support_;
  double* gradient_;
  double* norm_;
  double mass_ = 1.0;
  double value_ = 0.0;   // ½ xᵀGx + bᵀx
  double level_ = 0.0;   // the mean of the gradient under x: its value everywhere on an optimal support
  double radius_ = 0.0;  // bound on the norm of Σ x_k g_k / mass
  double noise_ = 0.0;   // rounding noise of a slope
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_SIMPLEX_QP_HPP
