#include "c10d_collective/torch_profiler.hpp"

#include <ATen/record_function.h>

#include <exception>
#include <memory>
#include <utility>

#include "collective/profiler_scope.hpp"

namespace bucket_moo {
namespace {

/// As RECORD_USER_SCOPE() does it, for a scope that is not a block of this function.
void* begin(const char* stage) noexcept {
  try {
    auto callbacks = at::getStepCallbacksUnlessEmpty(at::RecordScope::USER_SCOPE);
    if (!callbacks.has_value()) {
      return nullptr;
    }
    auto scope = std::make_unique<at::RecordFunction>(std::move(*callbacks));
    scope->before(stage);
    return scope.release();
  } catch (const std::exception&) {  // a profiler's trouble is no reason to break a reduction off
    return nullptr;
  }
}

void end(void* scope) noexcept { delete static_cast<at::RecordFunction*>(scope); }

}  // namespace

void show_stages_to_torch() noexcept {
  static constexpr Profiler kTorch{&begin, &end};
  set_profiler(&kTorch);
}

}  // namespace bucket_moo
