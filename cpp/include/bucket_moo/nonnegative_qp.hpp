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

#include <bucket_moo/cholesky.hpp>
#include <bucket_moo/config.hpp>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/scratch.hpp>
#include <cmath>

namespace bucket_moo {

/// The programme, its current point and the factorised support (where y > q). One object solves for any number of q.
template <class Lanes>
class NonnegativeQp {
 public:
  /// Doubles of scratch for k variables.
  BUCKET_MOO_HD static constexpr int scratch_size(int k) { return Cholesky<Lanes>::scratch_size(k) + 4 * k + 2; }

  /// \param k       number of variables, >= 1
  /// \param cosine  [k, k] symmetric with a diagonal of ones; read only
  /// \param scratch scratch_size(k) doubles
  BUCKET_MOO_HD NonnegativeQp(Lanes lanes, int k, const double* cosine, Scratch scratch)
      : lanes_(lanes),
        k_(k),
        cosine_(cosine),
        factor_(lanes, scratch.doubles(Cholesky<Lanes>::scratch_size(k)), k),
        gradient_(scratch.doubles(k)),
        step_(scratch.doubles(k)),
        column_(scratch.doubles(k)),
        support_(scratch.ints(k)),
        place_(scratch.ints(k)) {}

  /// Minimises, until no variable violates optimality by more than rounding noise.
  /// \param lower [k] q >= 0
  /// \param y     [k], out: the minimiser
  /// \return changes of the support made. Cost: O(k²) each. Stops after a fixed number in any case.
  BUCKET_MOO_HD int minimise(const double* lower, double* y) {
    lower_ = lower;
    y_ = y;
    factor_.clear();
    size_ = 0;
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) {
      y_[i] = lower_[i];
      place_[i] = kOutside;
    }
    lanes_.sync();

    const int cap = 16 * k_ + 64;
    double best = kInfinity;
    int entering = -1;
    int corrections = 0;
    bool any_barred = false;
    int iteration = 0;
    for (; iteration < cap; ++iteration) {
      update_gradient();
      if (value_ < best) {
        best = value_;
        if (any_barred) clear_barred();
        any_barred = false;
      } else if (entering >= 0) {  // a variable that brought nothing but noise: not again before there is progress
        if (lanes_.lane() == 0 && place_[entering] == kOutside) place_[entering] = kBarred;
        any_barred = true;
        lanes_.sync();
      }
      if (corrections < 2 && size_ > 0 && imbalance() > noise_) {
        ++corrections;
        entering = -1;
      } else {
        const Located worst = most_violating();
        if (!(worst.value < -noise_)) break;
        corrections = 0;
        entering = worst.index;
      }
      descend(entering, !any_barred);
    }
    return iteration;
  }

  /// How far the end of minimise() is from optimal, in units of Σ q: the larger of -min (Cy)_k and, relative to
  /// (Σ q)², (y - q)ᵀCy. That y >= q holds exactly.
  BUCKET_MOO_HD double residual() const {
    double lowest = 0.0;
    double product = 0.0;
    double total = 0.0;
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) {
      lowest = gradient_[i] < lowest ? gradient_[i] : lowest;
      product += (y_[i] - lower_[i]) * gradient_[i];
      total += lower_[i];
    }
    lowest = lanes_.min(lowest);
    product = std::fabs(lanes_.sum(product));
    total = lanes_.sum(total);
    if (!(total > 0.0)) return 0.0;
    const double violated = -lowest / total;
    const double complementary = product / total / total;
    return violated > complementary ? violated : complementary;
  }

 private:
  static constexpr int kOutside = 0;
  static constexpr int kInside = 1;
  static constexpr int kBarred = 2;

  BUCKET_MOO_HD double cosine(int i, int j) const { return cosine_[i * k_ + j]; }

  BUCKET_MOO_HD void clear_barred() {
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) {
      if (place_[i] == kBarred) place_[i] = kOutside;
    }
    lanes_.sync();
  }

  /// gradient := Cy, its noise, and the value yᵀCy.
  BUCKET_MOO_HD void update_gradient() {
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) gradient_[i] = 0.0;
    double length = 0.0;
    for (int j = 0; j < k_; ++j) {
      const double yj = y_[j];
      if (yj == 0.0) continue;
      length += yj;
      const double* const row = cosine_ + j * k_;
      for (int i = lanes_.lane(); i < k_; i += lanes_.count()) gradient_[i] += yj * row[i];
    }
    lanes_.sync();
    double value = 0.0;
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) value += y_[i] * gradient_[i];
    value_ = lanes_.sum(value);
    noise_ = (k_ + 8) * kEpsilon * length;
  }

  BUCKET_MOO_HD Located most_violating() const {
    Located worst{kInfinity, k_};
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) {
      const Located candidate{gradient_[i], i};
      if (place_[i] == kOutside && comes_before(candidate, worst)) worst = candidate;
    }
    return lanes_.argmin(worst);
  }

  /// How far the gradient on the support is from the zero it has at its minimiser.
  BUCKET_MOO_HD double imbalance() const {
    double largest = 0.0;
    for (int s = lanes_.lane(); s < size_; s += lanes_.count()) {
      const double size = std::fabs(gradient_[support_[s]]);
      largest = size > largest ? size : largest;
    }
    return lanes_.max(largest);
  }

  /// Lets `entering` (or, if negative, nothing) into the support and minimises over it, dropping the variables that hit
  /// their bound on the way.
  /// \param group whether others that violate optimality about as much may come along: fewer steps, but no guarantee
  BUCKET_MOO_HD void descend(int entering, bool group) {
    for (int guard = 0; guard <= 2 * k_; ++guard) {
      if (entering >= 0 && admit(entering)) {
        if (group && guard == 0) admit_about_as_violating(gradient_[entering]);
        entering = -1;
      }
      const bool newton = entering < 0;
      if (newton) {
        load_newton_step();
      } else {
        load_dependency();
      }
      const Located blocking = ratio_test();
      const bool whole = newton && blocking.value >= 1.0;
      if (!newton && blocking.value == kInfinity) break;
      move(whole ? 1.0 : blocking.value, entering);
      if (whole) break;
      drop(blocking.index);
      update_gradient();
    }
  }

  /// Appends variable i to the support and its factor; false if its column is dependent. Then column_ holds L⁻¹ times
  /// it.
  BUCKET_MOO_HD bool admit(int i) {
    for (int s = lanes_.lane(); s < size_; s += lanes_.count()) column_[s] = cosine(i, support_[s]);
    lanes_.sync();
    const double floor = 4.0 * (size_ + 2) * kEpsilon;
    if (!factor_.append(column_, 1.0, floor)) {
      lanes_.sync();
      return false;
    }
    if (lanes_.lane() == 0) {
      support_[size_] = i;
      place_[i] = kInside;
    }
    ++size_;
    lanes_.sync();
    return true;
  }

  BUCKET_MOO_HD void admit_about_as_violating(double gradient) {
    constexpr double kAlike = 0.5;
    for (int i = 0; i < k_; ++i) {
      if (place_[i] == kOutside && gradient_[i] <= kAlike * gradient) admit(i);
    }
  }

  /// step := the way to the minimiser over the support.
  BUCKET_MOO_HD void load_newton_step() {
    for (int s = lanes_.lane(); s < size_; s += lanes_.count()) step_[s] = -gradient_[support_[s]];
    lanes_.sync();
    factor_.solve(step_);
  }

  /// step := minus the combination of the support that equals the entering variable's gradient. Along it (with +1 for
  /// that variable) the direction Σ y_k g_k does not move, up to noise.
  BUCKET_MOO_HD void load_dependency() {
    factor_.backward(column_);
    for (int s = lanes_.lane(); s < size_; s += lanes_.count()) step_[s] = -column_[s];
    lanes_.sync();
  }

  /// How far along step_ the first member of the support reaches its bound, and its place in the support.
  BUCKET_MOO_HD Located ratio_test() const {
    Located first{kInfinity, k_};
    for (int s = lanes_.lane(); s < size_; s += lanes_.count()) {
      if (step_[s] < 0.0) {
        const int i = support_[s];
        const Located candidate{(lower_[i] - y_[i]) / step_[s], s};
        first = comes_before(candidate, first) ? candidate : first;
      }
    }
    return lanes_.argmin(first);
  }

  BUCKET_MOO_HD void move(double length, int entering) {
    for (int s = lanes_.lane(); s < size_; s += lanes_.count()) {
      const int i = support_[s];
      const double moved = y_[i] + length * step_[s];
      y_[i] = moved > lower_[i] ? moved : lower_[i];
    }
    if (entering >= 0 && lanes_.lane() == 0) y_[entering] += length;
    lanes_.sync();
  }

  /// Takes the variable at `at` out of the support, to its bound.
  BUCKET_MOO_HD void drop(int at) {
    const int variable = support_[at];
    factor_.remove(at);
    if (lanes_.lane() == 0) {
      y_[variable] = lower_[variable];
      place_[variable] = kOutside;
      for (int s = at + 1; s < size_; ++s) support_[s - 1] = support_[s];
    }
    --size_;
    lanes_.sync();
  }

  Lanes lanes_;
  int k_;
  const double* cosine_;
  const double* lower_ = nullptr;
  double* y_ = nullptr;
  Cholesky<Lanes> factor_;
  double* gradient_;
  double* step_;
  double* column_;
  int* support_;
  int* place_;  // kOutside, kInside, kBarred
  int size_ = 0;
  double value_ = 0.0;
  double noise_ = 0.0;  // rounding noise of a gradient
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_NONNEGATIVE_QP_HPP
