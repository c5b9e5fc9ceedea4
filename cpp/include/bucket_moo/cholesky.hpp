// Cholesky factor of a matrix that grows and shrinks by one row and column at a time.
//
// Source: Golub & Van Loan, "Matrix Computations", 4th ed.: 4.2 (factorisation), 6.5.4 (deleting, by Givens rotations).
#ifndef BUCKET_MOO_CHOLESKY_HPP
#define BUCKET_MOO_CHOLESKY_HPP

#include <bucket_moo/config.hpp>
#include <cmath>

namespace bucket_moo {

/// A = L Lᵀ for a symmetric positive definite A of varying size. Cholesky commutes with a diagonal scaling of A, so
/// rows of very different magnitude cost no accuracy.
template <class Lanes>
class Cholesky {
 public:
  /// Doubles of scratch for a matrix of up to `capacity` rows.
  BUCKET_MOO_HD static constexpr int scratch_size(int capacity) { return capacity * stride(capacity); }

  /// \param factor   [scratch_size(capacity)] scratch, not initialised
  /// \param capacity largest size the matrix may reach
  BUCKET_MOO_HD Cholesky(Lanes lanes, double* factor, int capacity)
      : lanes_(lanes), factor_(factor), stride_(stride(capacity)), size_(0) {}

  BUCKET_MOO_HD int size() const { return size_; }
  BUCKET_MOO_HD void clear() { size_ = 0; }

  /// Appends a row and column, unless that makes the matrix singular.
  /// \param column   [size] entries against the rows present; overwritten by L⁻¹ column
  /// \param diagonal the new diagonal entry
  /// \param floor    a pivot (diagonal less what the rows present explain) at or below this counts as dependent
  /// \return whether it was appended. Cost: size²/2 multiply-adds.
  BUCKET_MOO_HD bool append(double* column, double diagonal, double floor) {
    const double pivot = eliminate(column, diagonal);
    if (!(pivot > floor)) return false;
    store(column, pivot);
    return true;
  }

  /// Appends a row and column that is known to be independent; noise cannot take its pivot below `floor` > 0.
  BUCKET_MOO_HD void append_independent(double* column, double diagonal, double floor) {
    const double pivot = eliminate(column, diagonal);
    store(column, pivot > floor ? pivot : floor);
  }

  /// Deletes row and column `at`. Never fails. Cost: 3 (size - at)² multiply-adds.
  BUCKET_MOO_HD void remove(int at) {
    // A lane moves whole columns, so no lane reads what another has written.
    for (int c = lanes_.lane(); c < size_; c += lanes_.count()) {
      for (int r = (c > at + 1 ? c : at + 1); r < size_; ++r) entry(r - 1, c) = entry(r, c);
    }
    --size_;
    lanes_.sync();
    for (int c = at; c < size_; ++c) {  // rotate the superdiagonal away
      const double a = entry(c, c);
      const double b = entry(c, c + 1);
      const double norm = std::sqrt(a * a + b * b);
      const double cosine = a / norm;
      const double sine = b / norm;
      lanes_.sync();
      for (int r = c + lanes_.lane(); r < size_; r += lanes_.count()) {
        const double x = entry(r, c);
        const double y = entry(r, c + 1);
        entry(r, c) = cosine * x + sine * y;
        entry(r, c + 1) = cosine * y - sine * x;
      }
      lanes_.sync();
    }
  }

  /// x := A⁻¹ x, for x [size]. Cost: size² multiply-adds.
  BUCKET_MOO_HD void solve(double* x) const {
    forward(x);
    backward(x);
  }

  /// x := L⁻ᵀ x, for x [size]: completes the solve that a failed append() began.
  BUCKET_MOO_HD void backward(double* x) const {
    for (int j = size_ - 1; j >= 0; --j) {
      const double value = x[j] / entry(j, j);
      lanes_.sync();
      for (int i = lanes_.lane(); i < j; i += lanes_.count()) x[i] -= entry(j, i) * value;
      if (lanes_.lane() == 0) x[j] = value;
      lanes_.sync();
    }
  }

 private:
  // By columns, which elimination and rotations run along; odd, so that rows too spread over all shared memory banks.
  BUCKET_MOO_HD static constexpr int stride(int capacity) { return capacity | 1; }
  BUCKET_MOO_HD double& entry(int row, int column) const { return factor_[column * stride_ + row]; }

  BUCKET_MOO_HD void forward(double* x) const {
    for (int j = 0; j < size_; ++j) {
      const double value = x[j] / entry(j, j);
      lanes_.sync();
      for (int i = j + 1 + lanes_.lane(); i < size_; i += lanes_.count()) x[i] -= entry(i, j) * value;
      if (lanes_.lane() == 0) x[j] = value;
      lanes_.sync();
    }
  }

  BUCKET_MOO_HD double eliminate(double* column, double diagonal) const {
    forward(column);
    double explained = 0.0;
    for (int i = lanes_.lane(); i < size_; i += lanes_.count()) explained += column[i] * column[i];
    return diagonal - lanes_.sum(explained);
  }

  BUCKET_MOO_HD void store(const double* column, double pivot) {
    for (int i = lanes_.lane(); i < size_; i += lanes_.count()) entry(size_, i) = column[i];
    if (lanes_.lane() == 0) entry(size_, size_) = std::sqrt(pivot);
    ++size_;
    lanes_.sync();
  }

  Lanes lanes_;
  double* factor_;
  int stride_;
  int size_;
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_CHOLESKY_HPP
