#include "collective/profiler_scope.hpp"

#include <atomic>

namespace bucket_moo {
namespace {

std::atomic<const Profiler*> current_profiler = nullptr;

}  // namespace

void set_profiler(const Profiler* profiler) noexcept { current_profiler.store(profiler, std::memory_order_release); }

ProfilerScope::ProfilerScope(const char* stage) noexcept
    : profiler_(current_profiler.load(std::memory_order_acquire)),
      scope_(profiler_ != nullptr ? profiler_->begin(stage) : nullptr) {}

ProfilerScope::~ProfilerScope() {
  if (scope_ != nullptr) {
    profiler_->end(scope_);
  }
}

}  // namespace bucket_moo
