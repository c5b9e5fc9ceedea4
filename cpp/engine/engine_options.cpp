#include "engine/engine_options.hpp"

#include <string>
#include <utility>

#include "collective/agreed_error.hpp"

namespace bucket_moo {

void EngineOptions::check_objectives(int k) const {
  if (std::string wrong = method.mismatch(k); !wrong.empty()) {
    throw AgreedError(std::move(wrong));
  }
}

}  // namespace bucket_moo
