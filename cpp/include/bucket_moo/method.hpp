// Which method, with which options: plain data that can be passed by value to a kernel.
//
// Pointers in the options are optional, are not owned, must be readable where the solve runs and outlive it.
#ifndef BUCKET_MOO_METHOD_HPP
#define BUCKET_MOO_METHOD_HPP

namespace bucket_moo {

/// In the order of the list in method_list.hpp.
enum class MethodId : int {
  mean,
  mgda,
  cagrad,
  pcgrad,
  upgrad,
  dualproj,
  imtlg,
  aligned_mtl,
  nash_mtl,
  fairgrad,
  config,
  gradvac,
  krum,
  adasum,
  normalized_mean,
};

/// What the gradients are divided by before they are compared.
enum class Normalize : int { none, l2 };

/// How several directions become one.
enum class PcgradReduction : int { mean, sum };

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
  PcgradReduction reduction = PcgradReduction::mean;
  /// [K, K], row i: the order in which objective i meets the others (its own entry is skipped). Every row must be a
  /// permutation of 0, ..., K-1. nullptr: random, from the RandomKey.
  const int* permutation = nullptr;
};

/// Which eigenvalue of the Gramian the aligned gradients are scaled to.
enum class ScaleMode : int { min, median, mean };

// A `preference` is [K] >= 0, made to sum to 1 over the active objectives; nullptr, or entries there without a positive
// finite sum: all equal.

struct UpgradOptions {
  const double* preference = nullptr;
};

struct DualprojOptions {
  const double* preference = nullptr;
};

struct ImtlgOptions {};

struct AlignedMtlOptions {
  const double* preference = nullptr;
  ScaleMode scale_mode = ScaleMode::min;  ///< of the eigenvalues kept; median: the lower one of two in the middle
};

struct NashMtlOptions {
  double max_norm = 1.0;  ///< longest update; not positive: no bound
};

struct FairgradOptions {
  double alpha = 1.0;  ///< fairness, > 0 and finite (else 1): 1 is NashMTL without its clip
};

struct ConfigOptions {
  const double* preference = nullptr;  ///< what the cosines with the update are in proportion to
};

struct GradVacOptions {
  double beta = 0.5;  ///< share of this step in the moving average of the cosines, in [0, 1]
  /// [K, K], as in PcgradOptions.
  const int* permutation = nullptr;
};

struct KrumOptions {
  int n_byzantine = 0;  ///< objectives that may be arbitrary, >= 0
  int n_selected = 1;   ///< how many gradients to average, >= 1
};

struct AdasumOptions {};

struct NormalizedMeanOptions {};

/// An exponential average over steps of the weights of any method.
struct SmoothingOptions {
  double alpha = 0.0;  ///< share of the past, in [0, 1); anything else: no smoothing
};

/// How long an update is.
enum class Length : int {
  own,    ///< as the method has it
  mean,   ///< as that of the mean of the active objectives' gradients
  fixed,  ///< a number
};

/// The length that any method's update is brought to.
struct LengthOptions {
  Length to = Length::own;
  double value = 1.0;  ///< of Length::fixed, > 0 and finite
};

/// A method and its options; only those of `id` are read, `smoothing`, and then `length`.
struct Method {
  MethodId id = MethodId::mean;
  MeanOptions mean = {};
  MgdaOptions mgda = {};
  CagradOptions cagrad = {};
  PcgradOptions pcgrad = {};
  UpgradOptions upgrad = {};
  DualprojOptions dualproj = {};
  ImtlgOptions imtlg = {};
  AlignedMtlOptions aligned_mtl = {};
  NashMtlOptions nash_mtl = {};
  FairgradOptions fairgrad = {};
  ConfigOptions config = {};
  GradVacOptions gradvac = {};
  KrumOptions krum = {};
  AdasumOptions adasum = {};
  NormalizedMeanOptions normalized_mean = {};
  SmoothingOptions smoothing = {};
  LengthOptions length = {};
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHOD_HPP
