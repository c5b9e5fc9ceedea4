// What the active-set methods for quadratic programmes share: the variables off their bounds, the factor over them, and
// how far a step may go.
#ifndef BUCKET_MOO_ACTIVE_SET_HPP
#define BUCKET_MOO_ACTIVE_SET_HPP

#include <bucket_moo/cholesky.hpp>
#include <bucket_moo/config.hpp>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/scratch.hpp>
#include <cmath>

namespace bucket_moo {

/// The support of a point x >= lower: its members, the Cholesky factor of their Gram matrix, and a step over them.
/// Variables outside may be barred from coming in. A `lower` of nullptr is 0.
///
/// \tparam kBase members at the front that have no row in the factor: 0, or 1 where the rows describe differences to
///         the first member
template <class Lanes, int kBase>
class ActiveSet {
 public:
  /// Doubles of scratch for k variables.
  BUCKET_MOO_HD static constexpr int scratch_size(int k) { return Cholesky<Lanes>::scratch_size(k) + 3 * k + 2; }

  /// \param k       number of variables, >= 1
  /// \param scratch scratch_size(k) doubles are taken
  BUCKET_MOO_HD ActiveSet(Lanes lanes, int k, Scratch& scratch)
      : lanes_(lanes),
        k_(k),
        factor_(lanes, scratch.doubles(Cholesky<Lanes>::scratch_size(k)), k),
        step_(scratch.doubles(k)),
        column_(scratch.doubles(k)),
        members_(scratch.ints(k)),
        flags_(scratch.ints(k)) {}

  BUCKET_MOO_HD int size() const { return size_; }
  BUCKET_MOO_HD int operator[](int place) const { return members_[place]; }
  BUCKET_MOO_HD Cholesky<Lanes>& factor() { return factor_; }
  BUCKET_MOO_HD double* step() { return step_; }      ///< [size]
  BUCKET_MOO_HD double* column() { return column_; }  ///< [factor().size()]

  /// Leaves nothing inside and nothing barred.
  BUCKET_MOO_HD void clear() {
    factor_.clear();
    size_ = 0;
    any_barred_ = false;
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) flags_[i] = 0;
    lanes_.sync();
  }

  /// Leaves one variable inside, without a row, and nothing barred.
  BUCKET_MOO_HD void start(int variable) {
    factor_.clear();
    size_ = 1;
    any_barred_ = false;
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) flags_[i] = i == variable ? kInside : 0;
    if (lanes_.lane() == 0) members_[0] = variable;
    lanes_.sync();
  }

  /// Appends a variable that gets no row.
  BUCKET_MOO_HD void append(int variable) {
    if (lanes_.lane() == 0) {
      members_[size_] = variable;
      flags_[variable] |= kInside;
    }
    ++size_;
    lanes_.sync();
  }

  /// Appends a variable and its row, unless that is dependent.
  /// \param diagonal, floor  as Cholesky::append(), whose column is column()
  BUCKET_MOO_HD bool append(int variable, double diagonal, double floor) {
    const bool independent = factor_.append(column_, diagonal, floor);
    if (independent) append(variable);  // which syncs
    return independent;
  }

  /// Takes out the last member, which has no row. Lane 0 alone uses flags until survey(), before which others sync.
  BUCKET_MOO_HD void pop() {
    --size_;
    if (lanes_.lane() == 0) flags_[members_[size_]] &= ~kInside;
  }

  /// Takes out the member at a place, to its bound.
  BUCKET_MOO_HD void drop(int place, const double* lower, double* x) {
    const int variable = members_[place];
    if (place >= kBase) factor_.remove(place - kBase);
    lanes_.sync();
    if (lanes_.lane() == 0) {
      x[variable] = bound(lower, variable);
      flags_[variable] &= ~kInside;
      BUCKET_MOO_UNROLL(1)
      for (int s = place + 1; s < size_; ++s) members_[s - 1] = members_[s];
    }
    --size_;
    lanes_.sync();
  }

  /// The member at a place and the first one change places; the factor is left as it was.
  BUCKET_MOO_HD void swap_with_first(int place) {
    lanes_.sync();
    if (lanes_.lane() == 0) {
      const int variable = members_[place];
      members_[place] = members_[0];
      members_[0] = variable;
    }
    lanes_.sync();
  }

  /// To be called before the first judge() of a minimisation.
  BUCKET_MOO_HD void forget_progress() {
    best_ = kInfinity;
    if (any_barred_) unbar();
  }

  /// Takes the value of the objective after `entering` came in; negative: nothing did. A variable that brought nothing
  /// but noise is barred until there is progress.
  BUCKET_MOO_HD void judge(double value, int entering) {
    if (value < best_) {
      best_ = value;
      if (any_barred_) unbar();
    } else if (entering >= 0) {
      if (lanes_.lane() == 0) flags_[entering] |= kBarred;
      any_barred_ = true;
      lanes_.sync();
    }
  }

  /// Whether a variable has come in without progress, and there was none since.
  BUCKET_MOO_HD bool any_barred() const { return any_barred_; }

  BUCKET_MOO_HD bool may_enter(int variable) const { return flags_[variable] == 0; }

  /// What a programme says of the variables at a point.
  struct Survey {
    Located steepest;  ///< the variable with the steepest descent of those that may enter
    double imbalance;  ///< how far the slopes of the members are from the zero they have at the minimiser over them
  };

  /// \param programme  has slope(i) of the objective along variable i
  template <class Programme>
  BUCKET_MOO_HD Survey survey(const Programme& programme) const {
    Survey survey{{kInfinity, k_}, 0.0};
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) {
      const double slope = programme.slope(i);
      const Located candidate{slope, i};
      if (may_enter(i) && comes_before(candidate, survey.steepest)) survey.steepest = candidate;
      const double size = (flags_[i] & kInside) != 0 ? std::fabs(slope) : 0.0;
      survey.imbalance = size > survey.imbalance ? size : survey.imbalance;
    }
    lanes_.reduce(First{survey.steepest}, Max{survey.imbalance});
    return survey;
  }

  /// step() := minus the combination of the rows that equals column(), after an append() that returned false.
  BUCKET_MOO_HD void load_dependency() {
    factor_.solve_refused(column_);
    BUCKET_MOO_UNROLL(1)
    for (int s = lanes_.lane(); s < factor_.size(); s += lanes_.count()) step_[kBase + s] = -column_[s];
    lanes_.sync();
  }

  /// x += step(), at most until the first member reaches its bound.
  /// \param entering  negative: the step is to the minimiser over the support, and ends there. Else it is one along a
  ///                  dependency, without an end, and this variable grows by 1 a step
  /// \return the place of the member that has reached its bound; negative: none has, and if the step has no end, x has
  /// not moved
  BUCKET_MOO_HD int advance(int entering, const double* lower, double* x) {
    const Located blocking = ratio_test(lower, x);
    const bool whole = entering < 0 && blocking.value >= 1.0;
    if (entering >= 0 && blocking.value == kInfinity) return -1;
    const double length = whole ? 1.0 : blocking.value;
    BUCKET_MOO_UNROLL(1)
    for (int s = lanes_.lane(); s < size_; s += lanes_.count()) {
      const int i = members_[s];
      const double moved = x[i] + length * step_[s];
      const double least = bound(lower, i);
      x[i] = moved > least ? moved : least;
    }
    if (entering >= 0 && lanes_.lane() == 0) x[entering] += length;
    lanes_.sync();
    return whole ? -1 : blocking.index;
  }

 private:
  static constexpr int kInside = 1;
  static constexpr int kBarred = 2;

  BUCKET_MOO_HD static double bound(const double* lower, int i) { return lower == nullptr ? 0.0 : lower[i]; }

  /// Needs a sync() before a variable comes in or goes: that before its column or row is used.
  BUCKET_MOO_HD void unbar() {
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes_.lane(); i < k_; i += lanes_.count()) flags_[i] &= ~kBarred;
    any_barred_ = false;
  }

  /// How far along step_ the first member reaches its bound, and its place.
  BUCKET_MOO_HD Located ratio_test(const double* lower, const double* x) const {
    Located first{kInfinity, k_};
    BUCKET_MOO_UNROLL(1)
    for (int s = lanes_.lane(); s < size_; s += lanes_.count()) {
      if (step_[s] < 0.0) {
        const int i = members_[s];
        const Located candidate{(bound(lower, i) - x[i]) / step_[s], s};
        first = comes_before(candidate, first) ? candidate : first;
      }
    }
    return lanes_.argmin(first);
  }

  Lanes lanes_;
  int k_;
  Cholesky<Lanes> factor_;  // of the members from kBase on
  double* step_;
  double* column_;
  int* members_;
  int* flags_;  // of each variable: kInside, kBarred
  int size_ = 0;
  double best_ = kInfinity;
  bool any_barred_ = false;
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_ACTIVE_SET_HPP
