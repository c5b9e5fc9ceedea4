#include "engine/engine_options.hpp"

#include <string>
#include <utility>

#include "collective/agreed_error.hpp"

namespace bucket_moo {

namespace {

void throw_if(std::string wrong) {
  if (!wrong.empty()) {
    throw AgreedError(std::move(wrong));
  }
}

}  // namespace

void EngineOptions::check_objectives(int k) const { throw_if(method.mismatch(k)); }

void EngineOptions::check_objectives(std::span<const std::string> names) const { throw_if(method.mismatch(names)); }

}  // namespace bucket_moo
