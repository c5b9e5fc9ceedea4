// Small dense products over a lane policy.
//
// Source of the compensated sums: Ogita, Rump, Oishi, "Accurate sum and dot product", SIAM J. Sci. Comput. 26, 2005.
#ifndef BUCKET_MOO_LINEAR_ALGEBRA_HPP
#define BUCKET_MOO_LINEAR_ALGEBRA_HPP

#include <bucket_moo/config.hpp>
#include <cmath>

namespace bucket_moo {

/// y := A x, for a symmetric A [k, k]. y may not alias x. Cost: k² multiply-adds.
template <class Lanes>
BUCKET_MOO_HD void multiply(Lanes lanes, int k, const double* a, const double* x, double* y) {
  for (int i = lanes.lane(); i < k; i += lanes.count()) y[i] = 0.0;
  for (int j = 0; j < k; ++j) {  // row j serves as column j: contiguous across i
    const double xj = x[j];
    for (int i = lanes.lane(); i < k; i += lanes.count()) y[i] += xj * a[j * k + i];
  }
  lanes.sync();
}

/// Σ x_i y_i, for x and y [k].
template <class Lanes>
BUCKET_MOO_HD double dot(Lanes lanes, int k, const double* x, const double* y) {
  double value = 0.0;
  for (int i = lanes.lane(); i < k; i += lanes.count()) value += x[i] * y[i];
  return lanes.sum(value);
}

/// min x_i, for x [k].
template <class Lanes>
BUCKET_MOO_HD double smallest(Lanes lanes, int k, const double* x) {
  double value = x[0];
  for (int i = lanes.lane(); i < k; i += lanes.count()) value = x[i] < value ? x[i] : value;
  return lanes.min(value);
}

/// tr A / k, for A [k, k].
template <class Lanes>
BUCKET_MOO_HD double mean_diagonal(Lanes lanes, int k, const double* a) {
  double trace = 0.0;
  for (int i = lanes.lane(); i < k; i += lanes.count()) trace += a[i * k + i];
  return lanes.sum(trace) / k;
}

/// A sum in about twice the precision of double.
class PreciseSum {
 public:
  BUCKET_MOO_HD void add(double x) {
    const double total = high_ + x;
    const double part = total - high_;
    low_ += (high_ - (total - part)) + (x - part);
    high_ = total;
  }
  BUCKET_MOO_HD void add_product(double a, double b) {
    const double product = std::fma(a, b, 0.0);  // not a * b, which a compiler may contract into the sum
    low_ += std::fma(a, b, -product);
    add(product);
  }
  BUCKET_MOO_HD double high() const { return high_; }
  BUCKET_MOO_HD double low() const { return low_; }

 private:
  double high_ = 0.0;
  double low_ = 0.0;
};

/// xᵀAx in about twice the precision, for a symmetric A [k, k] whose terms cancel: the error is that of rounding the
/// result. Cost: some ten times multiply()'s.
/// \param high, low [k] each, scratch
template <class Lanes>
BUCKET_MOO_HD double precise_quadratic_form(Lanes lanes, int k, const double* a, const double* x, double* high,
                                            double* low) {
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    PreciseSum row;
    for (int j = 0; j < k; ++j) {
      if (x[j] != 0.0) row.add_product(a[j * k + i], x[j]);
    }
    high[i] = row.high();
    low[i] = row.low();
  }
  lanes.sync();
  PreciseSum total;  // by every lane alike: a reduction would round
  for (int i = 0; i < k; ++i) {
    if (x[i] == 0.0) continue;
    total.add_product(x[i], high[i]);
    total.add(x[i] * low[i]);
  }
  lanes.sync();
  return total.high() + total.low();
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_LINEAR_ALGEBRA_HPP
