// Small dense products over a lane policy.
//
// Source of the compensated sums: Ogita, Rump, Oishi, "Accurate sum and dot product", SIAM J. Sci. Comput. 26, 2005.
#ifndef BUCKET_MOO_LINEAR_ALGEBRA_HPP
#define BUCKET_MOO_LINEAR_ALGEBRA_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/lanes.hpp>
#include <cmath>

namespace bucket_moo {

/// y := start + Σ_t factor(t) row(t), for t < terms, the same bits in whichever order of the loops. Cost: k terms
/// multiply-adds.
/// \param start  start(i) is an entry
/// \param factor factor(t) is a number
/// \param row    row(t) is [k], contiguous
/// \param y      [k], out; read by neither
template <class Lanes, class Start, class Factor, class Row>
BUCKET_MOO_HD void add_rows(Lanes lanes, int k, int terms, Start start, Factor factor, Row row, double* y) {
  if constexpr (Lanes::kSerial) {  // along rows: vector instructions
    for (int i = 0; i < k; ++i) y[i] = start(i);
    for (int t = 0; t < terms; ++t) {
      const double f = factor(t);
      if (f == 0.0) continue;
      const double* const r = row(t);
      for (int i = 0; i < k; ++i) y[i] += f * r[i];
    }
  } else {  // along t: sums stay in registers, loads are under way side by side
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) {
      double sum = start(i);
      BUCKET_MOO_UNROLL(4)
      for (int t = 0; t < terms; ++t) sum += factor(t) * row(t)[i];
      y[i] = sum;
    }
  }
  lanes.sync();
}

/// y := A x, for a symmetric A [k, k]. y may not alias x.
template <class Lanes>
BUCKET_MOO_HD void multiply(Lanes lanes, int k, const double* a, const double* x, double* y) {
  add_rows(
      lanes, k, k, [](int) { return 0.0; }, [&](int j) { return x[j]; },
      [&](int j) { return a + j * k; },  // row j serves as column j
      y);
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
  for (int i = lanes.lane(); i < k; i += lanes.count()) Min{value}.join(x[i]);
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
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) {
    PreciseSum row;
    BUCKET_MOO_UNROLL(1)
    for (int j = 0; j < k; ++j) {
      if (x[j] != 0.0) row.add_product(a[j * k + i], x[j]);
    }
    high[i] = row.high();
    low[i] = row.low();
  }
  lanes.sync();
  PreciseSum total;  // by every lane alike: a reduction would round
  BUCKET_MOO_UNROLL(1)
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
