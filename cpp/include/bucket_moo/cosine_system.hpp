// The combination of unit gradients with given inner products: C v = target, for the matrix C of cosines.
#ifndef BUCKET_MOO_COSINE_SYSTEM_HPP
#define BUCKET_MOO_COSINE_SYSTEM_HPP

#include <bucket_moo/cholesky.hpp>
#include <bucket_moo/config.hpp>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/linear_algebra.hpp>
#include <bucket_moo/scratch.hpp>
#include <bucket_moo/symmetric_eigen.hpp>
#include <cmath>

namespace bucket_moo {

/// What solve_cosine_system() found out beside v.
struct CosineSolution {
  double square;    ///< vᵀCv, the squared length of the combination; may be rounding noise of a zero
  double residual;  ///< max |(Cv)_k - target_k| / √(vᵀCv): the error of the combination's cosines; infinite for v = 0
  bool exact;       ///< false: v is the shortest least-squares solution, C⁺ target
};

/// v := C⁺ target. Solved by Cholesky if C is definite and the cosines come out right, else by eigenvalues, which take
/// an order of magnitude longer.
///
/// \param cosine [k, k], with a diagonal of ones
/// \param target [k]
/// \param v      [k], out
/// \param image  [k], out: Cv
template <class Lanes>
BUCKET_MOO_HD CosineSolution solve_cosine_system(Lanes lanes, int k, const double* cosine, const double* target,
                                                 double* v, double* image, Scratch scratch) {
  constexpr double kDirectTolerance = 0.1 * kCertificateTolerance;
  double* const rest = scratch.doubles(k);
  CosineSolution result{0.0, kInfinity, true};

  // v += correction(target - Cv), and the certificate
  const auto judge = [&]() {
    multiply(lanes, k, cosine, v, image);
    double square = 0.0;
    double largest = 0.0;
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) {
      square += v[i] * image[i];
      rest[i] = target[i] - image[i];
      const double size = std::fabs(rest[i]);
      largest = size > largest ? size : largest;
    }
    lanes.reduce(Sum{square}, Max{largest});
    lanes.sync();
    result.square = square;
    result.residual = result.square > 0.0 ? largest / std::sqrt(result.square) : kInfinity;
  };
  const auto correct = [&]() {
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < k; i += lanes.count()) v[i] += rest[i];
    lanes.sync();
  };

  {
    Scratch memory = scratch;
    double* const column = memory.doubles(k);
    Cholesky<Lanes> factor(lanes, memory.doubles(Cholesky<Lanes>::scratch_size(k)), k);
    const double floor = 4.0 * (k + 2) * kEpsilon;
    bool definite = true;
    for (int i = 0; i < k && definite; ++i) {
      for (int j = lanes.lane(); j < i; j += lanes.count()) column[j] = cosine[i * k + j];
      lanes.sync();
      definite = factor.append(column, 1.0, floor);
    }
    if (definite) {
      BUCKET_MOO_UNROLL(1)
      for (int i = lanes.lane(); i < k; i += lanes.count()) v[i] = target[i];
      lanes.sync();
      factor.solve(v);
      judge();
      for (int refinement = 0; refinement < 2 && result.residual > 0.01 * kDirectTolerance; ++refinement) {
        factor.solve(rest);
        correct();
        judge();
      }
      if (result.residual <= kDirectTolerance) return result;
    }
  }

  double* const matrix = scratch.doubles(k * k);
  for (int i = lanes.lane(); i < k * k; i += lanes.count()) matrix[i] = cosine[i];
  lanes.sync();
  SymmetricEigen<Lanes> eigen(lanes, k, matrix, scratch);
  eigen.factorise();
  BUCKET_MOO_UNROLL(1)
  for (int i = lanes.lane(); i < k; i += lanes.count()) v[i] = target[i];
  lanes.sync();
  apply_pseudo_inverse(lanes, k, eigen, v);
  judge();
  apply_pseudo_inverse(lanes, k, eigen, rest);  // one step of refinement
  correct();
  judge();
  result.exact = result.residual <= kCertificateTolerance;
  return result;
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_COSINE_SYSTEM_HPP
