// Functions of a symmetric matrix, applied to a vector: f(A) x = V f(Λ) Vᵀ x.
//
// A is made tridiagonal by reflections and diagonal by plane rotations. Both are kept as they are, and V is never
// formed: applying them to one vector costs O(k²), forming V would cost several k³ and be most of the work.
//
// Source: Golub & Van Loan, "Matrix Computations", 4th ed.: 8.3.1 (Householder), 8.3.5 (implicit QR); the shift and the
// order of operations are those of Bowdler, Martin, Reinsch, Wilkinson, "The QR and QL algorithms for symmetric
// matrices", Numerische Mathematik 11, 1968.
#ifndef BUCKET_MOO_SYMMETRIC_EIGEN_HPP
#define BUCKET_MOO_SYMMETRIC_EIGEN_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/linear_algebra.hpp>
#include <bucket_moo/scratch.hpp>
#include <cmath>

namespace bucket_moo {

/// A = V Λ Vᵀ. The error of an eigenvalue is a few roundings of the largest one.
template <class Lanes>
class SymmetricEigen {
 public:
  /// Doubles of scratch for a [k, k] matrix.
  BUCKET_MOO_HD static constexpr int scratch_size(int k) { return rotation_capacity(k) + sweep_capacity(k) + 5 * k; }

  /// \param matrix  [k, k] symmetric, its entries of about 1 at most; overwritten, and in use as long as this object is
  /// \param scratch scratch_size(k) doubles
  BUCKET_MOO_HD SymmetricEigen(Lanes lanes, int k, double* matrix, Scratch scratch)
      : lanes_(lanes),
        k_(k),
        matrix_(matrix),
        value_(scratch.doubles(k)),
        beta_(scratch.doubles(k)),
        off_(scratch.doubles(k)),
        image_(scratch.doubles(k)),
        counts_(scratch.ints(3)),
        rotations_(scratch.doubles(rotation_capacity(k))),
        sweeps_(scratch.ints(2 * sweep_capacity(k))) {}

  /// Must be called first. \return whether all off-diagonal entries vanished within the cap on rotations.
  /// \param x [k] := Vᵀ x on the way, or nullptr
  /// Cost: 2 k³ multiply-adds, and about 1.2 k² rotations, one after the other, by one lane.
  BUCKET_MOO_HD bool factorise(double* x = nullptr) {
    tridiagonalise();
    for (int s = 0; x != nullptr && s + 2 < k_; ++s) reflect(s, x);
    if (lanes_.lane() == 0) diagonalise(x);
    lanes_.sync();
    return counts_[2] == 1;
  }

  /// [k] eigenvalues, in no particular order.
  BUCKET_MOO_HD const double* values() const { return value_; }

  /// x := Vᵀ x, for x [k]
  BUCKET_MOO_HD void to_eigenbasis(double* x) const {
    for (int s = 0; s + 2 < k_; ++s) reflect(s, x);
    if (lanes_.lane() == 0) {
      int at = 0;
      for (int sweep = 0; sweep < counts_[0]; ++sweep) {
        double carried = x[sweeps_[2 * sweep] + 1];  // in a register from one plane to the next
        for (int i = sweeps_[2 * sweep]; i >= sweeps_[2 * sweep + 1]; --i, ++at) {
          const Rotation r = unpacked(rotations_[at]);
          const double upper = x[i];
          x[i + 1] = r.sine * upper + r.cosine * carried;
          carried = r.cosine * upper - r.sine * carried;
        }
        x[sweeps_[2 * sweep + 1]] = carried;
      }
    }
    lanes_.sync();
  }

  /// x := V x, for x [k]
  BUCKET_MOO_HD void from_eigenbasis(double* x) const {
    if (lanes_.lane() == 0) {
      int at = counts_[1];
      for (int sweep = counts_[0] - 1; sweep >= 0; --sweep) {
        double carried = x[sweeps_[2 * sweep + 1]];
        for (int i = sweeps_[2 * sweep + 1]; i <= sweeps_[2 * sweep]; ++i) {
          --at;
          const Rotation r = unpacked(rotations_[at]);
          const double lower = x[i + 1];
          x[i] = r.cosine * carried + r.sine * lower;
          carried = r.cosine * lower - r.sine * carried;
        }
        x[sweeps_[2 * sweep] + 1] = carried;
      }
    }
    lanes_.sync();
    for (int s = k_ - 3; s >= 0; --s) reflect(s, x);
  }

 private:
  // Of a squared norm, next to entries of about 1: far below rounding, and its inverse does not overflow.
  static constexpr double kNegligible = 1e-280;

  // Some 1.2 k² are usual, 1.95 k² is the most seen. Beyond the capacity the rest of the off-diagonal is dropped.
  BUCKET_MOO_HD static constexpr int rotation_capacity(int k) { return 2 * k * k + 8 * k; }
  BUCKET_MOO_HD static constexpr int sweep_capacity(int k) { return 4 * k + 8; }

  struct Rotation {
    double cosine;  // >= 0
    double sine;
  };

  // One number a rotation: the smaller of cosine and sine, told apart by its size. Orthogonal to a rounding.
  BUCKET_MOO_HD static double packed(Rotation r) {
    return std::fabs(r.sine) <= r.cosine ? r.sine : std::copysign(2.0 - r.cosine, r.sine);
  }
  BUCKET_MOO_HD static Rotation unpacked(double number) {
    const double size = std::fabs(number);
    const bool is_cosine = size > 1.0;
    const double smaller = is_cosine ? 2.0 - size : size;
    const double larger = std::sqrt(1.0 - smaller * smaller);
    return {is_cosine ? smaller : larger, std::copysign(is_cosine ? larger : smaller, number)};
  }

  /// x := (I - β v vᵀ) x with reflection s, which acts on entries s + 1, ...
  BUCKET_MOO_HD void reflect(int s, double* x) const {
    const double* const v = matrix_ + s * k_;
    double product = 0.0;
    for (int i = s + 1 + lanes_.lane(); i < k_; i += lanes_.count()) product += v[i] * x[i];
    product = beta_[s] * lanes_.sum(product);
    for (int i = s + 1 + lanes_.lane(); i < k_; i += lanes_.count()) x[i] -= product * v[i];
    lanes_.sync();
  }

  /// value_ := the diagonal, off_ := the off-diagonal of QᵀAQ, and row s of matrix_ := the vector of reflection s.
  BUCKET_MOO_HD void tridiagonalise() {
    const int k = k_;
    for (int s = 0; s + 2 < k; ++s) {
      double* const v = matrix_ + s * k;
      const int from = s + 1;
      double square = 0.0;  // of what is to vanish
      for (int i = from + 1 + lanes_.lane(); i < k; i += lanes_.count()) square += v[i] * v[i];
      square = lanes_.sum(square);
      const double head = v[from];
      const double norm = std::sqrt(head * head + square);
      const double target = head > 0.0 ? -norm : norm;
      const double first = head - target;  // does not cancel
      const double beta = square > kNegligible ? -1.0 / (target * first) : 0.0;
      lanes_.sync();
      if (lanes_.lane() == 0) {
        v[from] = first;
        beta_[s] = beta;
        off_[s] = beta != 0.0 ? target : head;
      }
      lanes_.sync();
      if (beta == 0.0) continue;  // the same in all lanes

      // A := (I - βvvᵀ) A (I - βvvᵀ) = A - v qᵀ - q vᵀ, with p = βAv and q = p - ½β(pᵀv) v
      double* const q = image_;
      for (int i = from + lanes_.lane(); i < k; i += lanes_.count()) q[i] = 0.0;
      for (int j = from; j < k; ++j) {
        const double vj = beta * v[j];
        const double* const row = matrix_ + j * k;
        for (int i = from + lanes_.lane(); i < k; i += lanes_.count()) q[i] += vj * row[i];
      }
      double product = 0.0;
      for (int i = from + lanes_.lane(); i < k; i += lanes_.count()) product += q[i] * v[i];
      const double half = 0.5 * beta * lanes_.sum(product);
      for (int i = from + lanes_.lane(); i < k; i += lanes_.count()) q[i] -= half * v[i];
      lanes_.sync();
      for (int j = from; j < k; ++j) {  // a lane updates its own columns
        const double vj = v[j];
        const double qj = q[j];
        double* const row = matrix_ + j * k;
        for (int i = from + lanes_.lane(); i < k; i += lanes_.count()) row[i] -= vj * q[i] + qj * v[i];
      }
      lanes_.sync();
    }
    for (int i = lanes_.lane(); i < k; i += lanes_.count()) value_[i] = matrix_[i * k + i];
    if (lanes_.lane() == 0) {
      if (k >= 2) off_[k - 2] = matrix_[(k - 2) * k + k - 1];
      off_[k - 1] = 0.0;
    }
    lanes_.sync();
  }

  /// QL with implicit shifts on (value_, off_); by one lane. Sweep s rotates planes (i, i + 1) for i from
  /// sweeps_[2s] down to sweeps_[2s + 1]. counts_ := sweeps, rotations, and whether it got to the end.
  BUCKET_MOO_HD void diagonalise(double* x) {
    double* const d = value_;
    double* const e = off_;
    const int n = k_;
    int used = 0;
    int sweeps = 0;
    bool complete = true;
    double norm = 0.0;
    for (int i = 0; i < n; ++i) {
      const double size = std::fabs(d[i]) + std::fabs(e[i]);
      norm = size > norm ? size : norm;
    }
    const double negligible = 0.5 * kEpsilon * norm;
    for (int l = 0; l < n; ++l) {
      for (;;) {  // ends: every turn uses up one of sweep_capacity()
        int m = l;
        while (m + 1 < n && std::fabs(e[m]) > negligible) ++m;
        if (m == l) break;
        if (sweeps == sweep_capacity(n) || used + (m - l) > rotation_capacity(n)) {
          complete = false;
          break;
        }
        // Wilkinson's shift
        double g = (d[l + 1] - d[l]) / (2.0 * e[l]);
        double r = std::sqrt(g * g + 1.0);
        g = d[m] - d[l] + e[l] / (g + (g < 0.0 ? -r : r));
        double s = 1.0;
        double c = 1.0;
        double p = 0.0;
        int i = m - 1;
        for (; i >= l; --i) {
          const double f = s * e[i];
          const double b = c * e[i];
          const double square = f * f + g * g;
          if (!(square > kNegligible)) {  // the matrix has split
            e[i + 1] = 0.0;
            d[i + 1] -= p;
            e[m] = 0.0;
            break;
          }
          // The sign: so that the cosine is not negative. 1 / r as r / r²: side by side with the root, not after it.
          r = std::copysign(std::sqrt(square), g);
          e[i + 1] = r;
          const double inverse = r * (1.0 / square);
          s = f * inverse;
          c = g * inverse;
          g = d[i + 1] - p;
          r = (d[i] - g) * s + 2.0 * c * b;
          p = s * r;
          d[i + 1] = g + p;
          g = c * r - b;
          rotations_[used] = packed({c, s});
          ++used;
          if (x != nullptr) {
            const double upper = x[i];
            const double lower = x[i + 1];
            x[i + 1] = s * upper + c * lower;
            x[i] = c * upper - s * lower;
          }
        }
        sweeps_[2 * sweeps] = m - 1;
        sweeps_[2 * sweeps + 1] = i + 1;
        ++sweeps;
        if (i >= l) continue;  // r was 0
        d[l] -= p;
        e[l] = g;
        e[m] = 0.0;
      }
    }
    counts_[0] = sweeps;
    counts_[1] = used;
    counts_[2] = complete ? 1 : 0;
  }

  Lanes lanes_;
  int k_;
  double* matrix_;
  double* value_;
  double* beta_;
  double* off_;
  double* image_;
  int* counts_;
  double* rotations_;
  int* sweeps_;
};

/// x := A⁺ x for a positive semidefinite A, given factorised: eigenvalues that are rounding noise of the largest one
/// count as zero. \return how many did not.
template <class Lanes>
BUCKET_MOO_HD int apply_pseudo_inverse(Lanes lanes, int k, const SymmetricEigen<Lanes>& eigen, double* x) {
  const double* const values = eigen.values();
  double largest = 0.0;
  for (int i = lanes.lane(); i < k; i += lanes.count()) largest = values[i] > largest ? values[i] : largest;
  const double floor = 4.0 * (k + 2) * kEpsilon * lanes.max(largest);
  eigen.to_eigenbasis(x);
  double kept = 0.0;
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    const bool keep = values[i] > floor;
    kept += keep ? 1.0 : 0.0;
    x[i] = keep ? x[i] / values[i] : 0.0;
  }
  kept = lanes.sum(kept);
  lanes.sync();
  eigen.from_eigenbasis(x);
  return static_cast<int>(kept);
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_SYMMETRIC_EIGEN_HPP
