// Which method, with which options: plain data that can be passed by value to a kernel.
//
// Pointers in the options are optional, are not owned, must be readable where the solve runs and outlive it.
#ifndef BUCKET_MOO_METHOD_HPP
#define BUCKET_MOO_METHOD_HPP

namespace bucket_moo {

enum class MethodId : int { mean, mgda, cagrad, pcgrad };

/// What the gradients are divided by before they are compared.
enum class Normalize : int { none, l2 };

/// How several directions become one.
enum class Reduction : int { mean, sum };

struct MeanOptions {
  const double* weights = nullptr;  ///< [K] >= 0, made to sum to 1; nullptr: all equal
};

struct MgdaOptions {
  Normalize normalize = Normalize::none;
};

struct CagradOptions {
  double c = 0.4;        ///< radius of the search around the mean, relative to its norm; >= 0
  bool rescale = false;  ///< divide by 1 + c, so that agreeing gradients give the mean
};

struct PcgradOptions {
  Reduction reduction = Reduction::mean;
  /// [K, K], row i: the order in which objective i meets the others (its own entry is skipped). Every row must be a
  /// permutation of 0, ..., K-1. nullptr: random, from the RandomKey.
  const int* permutation = nullptr;
};

/// A method and its options; only those of `id` are read.
struct Method {
  MethodId id = MethodId::mean;
  MeanOptions mean = {};
  MgdaOptions mgda = {};
  CagradOptions cagrad = {};
  PcgradOptions pcgrad = {};
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHOD_HPP
