// The list of methods: the one place that names them all.
#ifndef BUCKET_MOO_METHOD_LIST_HPP
#define BUCKET_MOO_METHOD_LIST_HPP

#include <array>
#include <bucket_moo/config.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/method.hpp>
#include <bucket_moo/methods/adasum.hpp>
#include <bucket_moo/methods/aligned_mtl.hpp>
#include <bucket_moo/methods/cagrad.hpp>
#include <bucket_moo/methods/config.hpp>
#include <bucket_moo/methods/dualproj.hpp>
#include <bucket_moo/methods/fairgrad.hpp>
#include <bucket_moo/methods/gradvac.hpp>
#include <bucket_moo/methods/imtlg.hpp>
#include <bucket_moo/methods/krum.hpp>
#include <bucket_moo/methods/mean.hpp>
#include <bucket_moo/methods/mgda.hpp>
#include <bucket_moo/methods/nash_mtl.hpp>
#include <bucket_moo/methods/normalized_mean.hpp>
#include <bucket_moo/methods/pcgrad.hpp>
#include <bucket_moo/methods/upgrad.hpp>

namespace bucket_moo {

/// Methods known when compiling, each a struct over MethodTraits, and what is asked of one that is known when running.
template <class... Each>
struct MethodList {
  static constexpr int kCount = sizeof...(Each);
  static constexpr std::array<const char*, sizeof...(Each)> kNames{Each::kName...};

  /// Whether a method's place in the list is its id.
  static constexpr bool in_order() {
    int place = 0;
    return ((static_cast<int>(Each::kId) == place++) && ...);
  }

  /// function(M{}), where M is the method with this id.
  template <class Function>
  static void visit(MethodId id, Function function) {
    static_cast<void>(((id == Each::kId && (function(Each{}), true)) || ...));
  }

  /// MethodTraits::kTolerance of the method with this id.
  BUCKET_MOO_HD static constexpr double tolerance(MethodId id) {
    double tolerance = kCertificateTolerance;
    static_cast<void>(((id == Each::kId && (tolerance = Each::kTolerance, true)) || ...));
    return tolerance;
  }

  /// MethodTraits::kScratchMatrices of the method with this id.
  BUCKET_MOO_HD static constexpr int scratch_matrices(MethodId id) {
    int matrices = 0;
    static_cast<void>(((id == Each::kId && (matrices = Each::kScratchMatrices, true)) || ...));
    return matrices;
  }

  /// The most that a method of the list has.
  BUCKET_MOO_HD static constexpr int scratch_matrices() {
    int most = 0;
    ((most = Each::kScratchMatrices > most ? Each::kScratchMatrices : most), ...);
    return most;
  }

  /// MethodTraits::kRemembersPairs of the method with this id.
  BUCKET_MOO_HD static constexpr bool remembers_pairs(MethodId id) {
    return ((id == Each::kId && Each::kRemembersPairs) || ...);
  }
};

/// In the order of MethodId.
using Methods = MethodList<MeanMethod, MgdaMethod, CagradMethod, PcgradMethod, UpgradMethod, DualprojMethod,
                           ImtlgMethod, AlignedMtlMethod, NashMtlMethod, FairgradMethod, ConfigMethod, GradVacMethod,
                           KrumMethod, AdasumMethod, NormalizedMeanMethod>;
static_assert(Methods::in_order(), "the list of methods is in the order of MethodId");

inline constexpr int kMethods = Methods::kCount;

/// For messages, by MethodId: the names of the Python classes, which in small letters are the names that `method=`
/// takes.
inline constexpr std::array<const char*, kMethods> kMethodNames = Methods::kNames;

}  // namespace bucket_moo

#endif  // BUCKET_MOO_METHOD_LIST_HPP
