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
  BUCKET_MOO_HD static constexpr int scratch_size(int capacity) { return capacity * (stride(capacity) + 2); }

  /// \param scratch  [scratch_size(capacity)], not initialised
  /// \param capacity largest size the matrix may reach
  BUCKET_MOO_HD Cholesky(Lanes lanes, double* scratch, int capacity)
      : lanes_(lanes),
        stride_(stride(capacity)),
        size_(0),
        factor_(scratch),
        divisor_(factor_ + capacity * stride_),
        vector_(divisor_ + capacity) {}

  BUCKET_MOO_HD int size() const { return size_; }
  BUCKET_MOO_HD void clear() { size_ = 0; }

  /// Appends a row and column, unless that makes the matrix singular. Needs a sync() before anything else is asked of
  /// the matrix; that between a next column's write and its append() will do.
  /// \param column   [size] entries against the rows present; overwritten
  /// \param diagonal the new diagonal entry
  /// \param floor    a pivot (diagonal less what the rows present explain) at or below this counts as dependent
  /// \return whether it was appended. Cost: size²/2 multiply-adds.
  BUCKET_MOO_HD bool append(double* column, double diagonal, double floor) {
    const double pivot = eliminate(column, diagonal);
    if (!(pivot > floor)) return false;
    accept(pivot);
    return true;
  }

  /// Appends a row and column that is known to be independent; noise cannot take its pivot below `floor` > 0. As
  /// append().
  BUCKET_MOO_HD void append_independent(double* column, double diagonal, double floor) {
    const double pivot = eliminate(column, diagonal);
    accept(pivot > floor ? pivot : floor);
  }

  /// Deletes row and column `at`. Never fails. Needs a sync() as append() does. Cost: 3 (size - at)² multiply-adds.
  BUCKET_MOO_HD void remove(int at) {
    // A lane moves whole columns, so no lane reads what another has written.
    BUCKET_MOO_UNROLL(1)
    for (int c = lanes_.lane(); c < size_; c += lanes_.count()) {
      BUCKET_MOO_UNROLL(2)
      for (int r = (c > at + 1 ? c : at + 1); r < size_; ++r) entry(r - 1, c) = entry(r, c);
    }
    --size_;
    lanes_.sync();
    for (int c = at; c < size_; ++c) {  // rotate the superdiagonal away
      const double a = entry(c, c);
      const double b = entry(c, c + 1);
      const double norm = lanes_.divisor(std::sqrt(a * a + b * b));
      const double cosine = lanes_.divide(a, norm);
      const double sine = lanes_.divide(b, norm);
      BUCKET_MOO_UNROLL(1)
      for (int r = c + 1 + lanes_.lane(); r < size_; r += lanes_.count()) {
        const double x = entry(r, c);
        const double y = entry(r, c + 1);
        entry(r, c) = cosine * x + sine * y;
        entry(r, c + 1) = cosine * y - sine * x;
      }
      if (lanes_.lane() == 0) divisor_[c] = cosine * a + sine * b;  // not to (c, c), which others may still read
      lanes_.sync();
    }
    BUCKET_MOO_UNROLL(1)
    for (int c = at + lanes_.lane(); c < size_; c += lanes_.count()) {
      const double diagonal = divisor_[c];
      entry(c, c) = diagonal;
      divisor_[c] = lanes_.divisor(diagonal);
    }
  }

  /// x := A⁻¹ x, for x [size]. Cost: size² multiply-adds.
  BUCKET_MOO_HD void solve(double* x) const {
    forward(lanes_, size_, stride_, factor_, divisor_, x, vector_, 1);
    backward(lanes_, size_, stride_, factor_, divisor_, vector_, x);
  }

  /// x := A⁻¹ column, for the column of an append() that has returned false; x [size].
  BUCKET_MOO_HD void solve_refused(double* x) const {
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes_.lane(); i < size_; i += lanes_.count()) vector_[i] = entry(size_, i);
    lanes_.sync();
    backward(lanes_, size_, stride_, factor_, divisor_, vector_, x);
  }

 private:
  // By columns, which elimination and rotations run along; odd, so that rows too spread over all shared memory banks.
  BUCKET_MOO_HD static constexpr int stride(int capacity) { return capacity | 1; }
  BUCKET_MOO_HD double& entry(int row, int column) const { return factor_[column * stride_ + row]; }

  // Of a triangular solve, so many entries are computed by all lanes alike before they go into the others: lanes wait
  // for one another once a block.
  static constexpr int kBlock = 4;

  /// to[j step] := (L⁻¹ x)_j; x is used up. Results do not go into x, where other lanes may still read.
  /// \return their sum of squares
  BUCKET_MOO_HD BUCKET_MOO_CALLED static double forward(Lanes lanes, int size, int stride, const double* factor,
                                                        const double* divisor, double* x, double* to, int step) {
    factor = lanes.near(factor);
    divisor = lanes.near(divisor);
    x = lanes.near(x);
    to = lanes.near(to);
    double square = 0.0;
    for (int begin = 0; begin < size; begin += kBlock) {
      double value[kBlock] = {};  // zero beyond the end
      for (int b = 0; b < kBlock; ++b) {
        const int j = begin + b;
        if (j >= size) break;
        double rest = x[j];
        for (int a = 0; a < b; ++a) rest -= factor[(begin + a) * stride + j] * value[a];
        value[b] = lanes.divide(rest, divisor[j]);
        square += value[b] * value[b];
        if (lanes.lane() == 0) to[j * step] = value[b];
      }
      BUCKET_MOO_UNROLL(1)
      for (int i = begin + kBlock + lanes.lane(); i < size; i += lanes.count()) {
        double rest = x[i];
        for (int b = 0; b < kBlock; ++b) rest -= factor[(begin + b) * stride + i] * value[b];
        x[i] = rest;
      }
      lanes.sync();
    }
    return square;
  }

  /// to := L⁻ᵀ x; x is used up.
  BUCKET_MOO_HD BUCKET_MOO_CALLED static void backward(Lanes lanes, int size, int stride, const double* factor,
                                                       const double* divisor, double* x, double* to) {
    factor = lanes.near(factor);
    divisor = lanes.near(divisor);
    x = lanes.near(x);
    to = lanes.near(to);
    for (int end = size - 1; end >= 0; end -= kBlock) {
      double value[kBlock] = {};
      for (int b = 0; b < kBlock; ++b) {
        const int j = end - b;
        if (j < 0) break;
        double rest = x[j];
        for (int a = 0; a < b; ++a) rest -= factor[j * stride + end - a] * value[a];
        value[b] = lanes.divide(rest, divisor[j]);
        if (lanes.lane() == 0) to[j] = value[b];
      }
      BUCKET_MOO_UNROLL(1)
      for (int i = lanes.lane(); i <= end - kBlock; i += lanes.count()) {
        double rest = x[i];
        for (int b = 0; b < kBlock; ++b) rest -= factor[i * stride + end - b] * value[b];
        x[i] = rest;
      }
      lanes.sync();
    }
  }

  /// The new row := L⁻¹ column. \return the pivot
  BUCKET_MOO_HD double eliminate(double* column, double diagonal) const {
    return diagonal - forward(lanes_, size_, stride_, factor_, divisor_, column, factor_ + size_, stride_);
  }

  BUCKET_MOO_HD void accept(double pivot) {
    if (lanes_.lane() == 0) {
      const double root = std::sqrt(pivot);
      entry(size_, size_) = root;
      divisor_[size_] = lanes_.divisor(root);
    }
    ++size_;
  }

  Lanes lanes_;
  int stride_;
  int size_;
  double* factor_;
  double* divisor_;  // of each row: its diagonal entry, to divide by
  double* vector_;
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_CHOLESKY_HPP
