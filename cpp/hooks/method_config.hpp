// A method with its options, owning what the core's plain-data Method only points to.
#pragma once

#include <c10/util/Exception.h>

#include <cstddef>
#include <utility>
#include <vector>

#include "bucket_moo/method.hpp"

namespace bucket_moo {

/// Copyable and self-contained; `method()` points into it, so keep it alive and unchanged as long as that is used.
class MethodConfig {
 public:
  /// `preference`: one number an objective, the weights of Mean and the preference of others. `permutation`: K rows of
  /// K, of PCGrad and GradVac. Empty: the method's default. The pointers of `method` are ignored.
  explicit MethodConfig(Method method, std::vector<double> preference = {},
                        const std::vector<std::vector<int>>& permutation = {})
      : method_(method), preference_(std::move(preference)), rows_(permutation.size()) {
    for (const std::vector<int>& row : permutation) {
      permutation_.insert(permutation_.end(), row.begin(), row.end());
    }
  }

  /// The same method with its weights averaged over steps, see SmoothingOptions.
  MethodConfig smoothed(double alpha) const {
    MethodConfig config = *this;
    config.method_.smoothing.alpha = alpha;
    return config;
  }

  /// Ready for solve(). Only the options of the method itself are read, so all may point to the same vectors.
  Method method() const {
    return method(preference_.empty() ? nullptr : preference_.data(),
                  permutation_.empty() ? nullptr : permutation_.data());
  }

  /// The same with copies of preference() and permutation() that lie elsewhere.
  Method method(const double* preference, const int* permutation) const {
    Method method = method_;
    method.mean.weights = preference;
    method.upgrad.preference = preference;
    method.dualproj.preference = preference;
    method.aligned_mtl.preference = preference;
    method.config.preference = preference;
    method.pcgrad.permutation = permutation;
    method.gradvac.permutation = permutation;
    return method;
  }

  const std::vector<double>& preference() const { return preference_; }
  const std::vector<int>& permutation() const { return permutation_; }

  /// The number of objectives that the options are for; 0: any.
  int expected_objectives() const { return static_cast<int>(preference_.empty() ? rows_ : preference_.size()); }

  /// Raises ValueError if an option was made for another number of objectives than K.
  void check(int k) const {
    const auto size = static_cast<std::size_t>(k);
    const char* const name = kMethodNames[static_cast<int>(method_.id)];
    TORCH_CHECK_VALUE(preference_.empty() || preference_.size() == size, "bucket_moo_ext: ", name,
                      method_.id == MethodId::mean ? "(weights" : "(preference", "=...) holds ", preference_.size(),
                      " weights, but there are ", k, " objectives");
    TORCH_CHECK_VALUE(rows_ == 0 || rows_ == size, "bucket_moo_ext: ", name, "(permutation=...) is for ", rows_,
                      " objectives, but there are ", k);
  }

 private:
  Method method_;
  std::vector<double> preference_;
  std::vector<int> permutation_;  // [rows_, rows_]
  std::size_t rows_;
};

}  // namespace bucket_moo
