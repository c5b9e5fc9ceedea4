// The C interface's method.
#pragma once

#include "c_api/boundary.hpp"
#include "methods/method_config.hpp"

struct bucket_moo_method {
  bucket_moo::MethodConfig config;
};

namespace bucket_moo::c_api {

inline const MethodConfig& config_of(const bucket_moo_method* method) {
  require(method != nullptr, "method must not be NULL");
  return method->config;
}

}  // namespace bucket_moo::c_api
