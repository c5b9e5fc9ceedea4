// Sizes and tolerances that every solver shares. All tolerances are relative: gradients of 1e-12 and of 1e+12 are
// treated alike.
#ifndef BUCKET_MOO_LIMITS_HPP
#define BUCKET_MOO_LIMITS_HPP

#include <limits>

namespace bucket_moo {

/// Largest number of objectives K.
inline constexpr int kMaxObjectives = 64;

/// A solution whose relative certificate (Solution::residual) is above this is reported as Status::not_converged.
inline constexpr double kCertificateTolerance = 1e-9;

/// The same for the equilibria of NashMTL and FairGrad, whose certificate multiplies two large numbers.
inline constexpr double kEquilibriumTolerance = 1e-8;

/// Unit of rounding noise.
inline constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

/// The same of float32, which gradients come in.
inline constexpr double kFloatEpsilon = std::numeric_limits<float>::epsilon();

/// "No bound" in minima and ratio tests.
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Largest finite value.
inline constexpr double kLargest = std::numeric_limits<double>::max();

}  // namespace bucket_moo

#endif  // BUCKET_MOO_LIMITS_HPP
