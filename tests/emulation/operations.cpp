#include "operations.hpp"

#include <mutex>

namespace bucket_moo::emulation {
namespace {

std::mutex mutex;
Operations counted;

}  // namespace

Operations operations() {
  const std::lock_guard lock(mutex);
  return counted;
}

void count(long Operations::* kind) {
  const std::lock_guard lock(mutex);
  if (kind != nullptr) ++(counted.*kind);
}

}  // namespace bucket_moo::emulation
