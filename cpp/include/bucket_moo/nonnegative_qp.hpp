// Quadratic programme over a shifted orthant, in Gram form: minimise ½ yᵀCy over y >= q. With x = y - q this is
// non-negative least squares.
//
// Source: Lawson & Hanson, "Solving least squares problems", 1974, ch. 23 (NNLS). Unlike there:
// - everything is in terms of the Gramian, so the support's factor is Cholesky's;
// - steps are Newton corrections from the current y, so that repeating one is a step of iterative refinement;
// - a vertex that rounding makes dependent on the support is exchanged for another one along the dependency, or left
//   out where none blocks; nothing is regularised.
#ifndef BUCKET_MOO_NONNEGATIVE_QP_HPP
#define BUCKET_MOO_NONNEGATIVE_QP_HPP

#include <bucket_moo/active_set.hpp>
#include <bucket_moo/config.hpp>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/linear_algebra.hpp>
#include <bucket_moo/scratch.hpp>
#include <cmath>

namespace bucket_moo {

/// The programme, its current point and the factorised support (where y > q). One object solves for any number of q.
template <class Lanes>
class NonnegativeQp {
  using Support = ActiveSet<Lanes, 0>;

 public:
  /// Doubles of scratch for k variables.
  BUCKET_MOO_HD static constexpr int scratch_size(int k) { return Support::scratch_size(k) + k; }

  /// \param k       number of variables, >= 1
  /// \param cosine  [k, k] symmetric with a diagonal of ones; read only
  /// \param scratch scratch_size(k) doubles
  BUCKET_MOO_HD NonnegativeQp(Lanes lanes, int k, const double* cosine, Scratch scratch)
      : lanes_(lanes), k_(k), cosine_(cosine), support_(lanes, k, scratch), gradient_(scratch.doubles(k)) {}

  /// Minimises, until no variable violates optimality by more than rounding noise.
  /// \param lower [k] q >= 0; a lane may have just written what is its own
  /// \param y     [k], out: the minimiser
  /// \return changes of the support made. Cost: O(k²) each. Stops after a fixed number in any case.
  BUCKET_MOO_HD int minimise(const double* lower, double* y) {
    lower_ = lower;
    y_ = y;
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) y_[i] = lower_[i];
    support_.clear();
    support_.forget_progress();

    const int cap = 16 * k_ + 64;
    int entering = -1;
    int corrections = 0;
    int iteration = 0;
    for (; iteration < cap; ++iteration) {
      update_gradient();
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
      descend(entering, !support_.any_barred());
    }
    return iteration;
  }

  /// How far the end of minimise() is from optimal, in units of Σ q: the larger of -min (Cy)_k and, relative to
  /// (Σ q)², (y - q)ᵀCy. That y >= q holds exactly.
  BUCKET_MOO_HD double residual() const {
    double lowest = 0.0;
    double product = 0.0;
    double total = 0.0;
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) {
      lowest = gradient_[i] < lowest ? gradient_[i] : lowest;
      product += (y_[i] - lower_[i]) * gradient_[i];
      total += lower_[i];
    }
    lanes_.reduce(Min{lowest}, Sum{product}, Sum{total});
    product = std::fabs(product);
    if (!(total > 0.0)) return 0.0;
    const double violated = -lowest / total;
    const double complementary = product / total / total;
    return violated > complementary ? violated : complementary;
  }

  /// Of the objective along variable i. Rounding noise in it is noise_.
  BUCKET_MOO_HD double slope(int i) const { return gradient_[i]; }

 private:
  BUCKET_MOO_HD double cosine(int i, int j) const { return cosine_[i * k_ + j]; }

  /// gradient := Cy, its noise, and the value yᵀCy.
  BUCKET_MOO_HD void update_gradient() {
    multiply(lanes_, k_, cosine_, y_, gradient_);
    double length = 0.0;
    double value = 0.0;
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) {
      length += y_[i];
      value += y_[i] * gradient_[i];
    }
    lanes_.reduce(Sum{length}, Sum{value});
    value_ = value;
    noise_ = (k_ + 8) * kEpsilon * length;
  }

  /// Lets `entering` (or, if negative, nothing) into the support and minimises over it, dropping the variables that hit
  /// their bound on the way.
  /// \param group whether others that violate optimality about as much may come along: fewer steps, but no guarantee
  BUCKET_MOO_HD void descend(int entering, bool group) {
    for (int guard = 0; guard <= 2 * k_; ++guard) {
      if (entering >= 0 && admit(entering)) {
        if (group && guard == 0) admit_about_as_steep(gradient_[entering]);
        entering = -1;
      }
      if (entering < 0) {
        load_newton_step();
      } else {  // along the dependency the direction Σ y_k g_k does not move, up to noise
        support_.load_dependency();
      }
      const int blocking = support_.advance(entering, lower_, y_);
      if (blocking < 0) break;
      support_.drop(blocking, lower_, y_);
      update_gradient();
    }
  }

  /// Lets variable i into the support; false if it is dependent.
  BUCKET_MOO_HD bool admit(int i) {
    BUCKET_MOO_UNROLL(1)
    for (int s = lanes_.lane(); s < support_.size(); s += lanes_.count()) support_.column()[s] = cosine(i, support_[s]);
    lanes_.sync();
    return support_.append(i, 1.0, 4.0 * (support_.size() + 2) * kEpsilon);
  }

  BUCKET_MOO_HD void admit_about_as_steep(double slope) {
    constexpr double kAlike = 0.5;
    for (int i = 0; i < k_; ++i) {
      if (support_.may_enter(i) && gradient_[i] <= kAlike * slope) admit(i);
    }
  }

  /// step := the way to the minimiser over the support.
  BUCKET_MOO_HD void load_newton_step() {
    double* const step = support_.step();
    BUCKET_MOO_UNROLL(1)
    for (int s = lanes_.lane(); s < support_.size(); s += lanes_.count()) step[s] = -gradient_[support_[s]];
    lanes_.sync();
    support_.factor().solve(step);
  }

  Lanes lanes_;
  int k_;
  const double* cosine_;
  const double* lower_ = nullptr;
  double* y_ = nullptr;
  Support support_;
  double* gradient_;
  double value_ = 0.0;
  double noise_ = 0.0;  // rounding noise of a gradient
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_NONNEGATIVE_QP_HPP
