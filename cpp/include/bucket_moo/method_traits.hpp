// What a method says of itself in its own file, beside how it is solved. method_list.hpp puts the methods together.
#ifndef BUCKET_MOO_METHOD_TRAITS_HPP
#define BUCKET_MOO_METHOD_TRAITS_HPP

#include <bucket_moo/limits.hpp>
#include <bucket_moo/method.hpp>

namespace bucket_moo {

/// The base of a method's struct, with what most methods have. The struct adds
///
///   static constexpr const char* kName;  // of the Python class; in small letters it is what `method=` takes
///   template <class Lanes>
///   BUCKET_MOO_HD static Solution solve(Lanes lanes, const Method& method, const Problem& problem, double* state,
///                                       double* weights, Scratch scratch);
///
/// `state` is as in solve(), `weights` is [problem.k].
template <MethodId id>
struct MethodTraits {
  static constexpr MethodId kId = id;

  /// The largest residual that counts as solved.
  static constexpr double kTolerance = kCertificateTolerance;

  /// Matrices [k, k] of scratch that it takes beside problem.gram, at least 1.
  static constexpr int kScratchMatrices = 2;

  /// Whether its state holds a number for every pair of objectives: [k, k] doubles.
  static constexpr bool kRemembersPairs = false;

  /// Shows the options of this method in `method` to a visitor, the numbers in the order of Python's `_options()`. The
  /// visitors are those of MethodConfig; their functions are the kinds of options that there are.
  template <class Visitor>
  static void visit_options(Visitor&, Method&) {}
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHOD_TRAITS_HPP
