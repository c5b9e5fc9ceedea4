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
  explicit MethodConfig(Method method) : method_(method) {}

  static MethodConfig mean(std::vector<double> weights) {
    MethodConfig config(Method{.id = MethodId::mean});
    config.mean_weights_ = std::move(weights);
    return config;
  }

  static MethodConfig pcgrad(Reduction reduction, std::vector<int> permutation, int k) {
    MethodConfig config(Method{.id = MethodId::pcgrad, .pcgrad = {.reduction = reduction}});
    config.permutation_ = std::move(permutation);
    config.permutation_k_ = k;
    return config;
  }

  Method method() const {
    Method method = method_;
    method.mean.weights = mean_weights_.empty() ? nullptr : mean_weights_.data();
    method.pcgrad.permutation = permutation_.empty() ? nullptr : permutation_.data();
    return method;
  }

  /// Raises ValueError if an option was made for another number of objectives than K.
  void check(int k) const {
    TORCH_CHECK_VALUE(mean_weights_.empty() || mean_weights_.size() == static_cast<std::size_t>(k),
                      "bucket_moo_ext: Mean(weights=...) holds ", mean_weights_.size(), " weights, but there are ", k,
                      " objectives");
    TORCH_CHECK_VALUE(permutation_.empty() || permutation_k_ == k, "bucket_moo_ext: PCGrad(permutation=...) is for ",
                      permutation_k_, " objectives, but there are ", k);
  }

 private:
  Method method_;
  std::vector<double> mean_weights_;
  std::vector<int> permutation_;
  int permutation_k_ = 0;
};

}  // namespace bucket_moo
