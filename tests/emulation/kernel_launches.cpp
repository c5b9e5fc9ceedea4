// How often each kernel was launched. A pointer is all that a launch knows of its kernel; the names are in the symbols
// of the library.
#include <dlfcn.h>

#include <cstdint>
#include <map>
#include <mutex>

#include "cuda_runtime.h"

namespace bucket_moo::emulation {
namespace {

std::mutex mutex;

std::map<std::uintptr_t, long>& counts() {
  static auto* const instance = new std::map<std::uintptr_t, long>;  // kernels may run while the process ends
  return *instance;
}

}  // namespace

void count_launch(const void* kernel) {
  const std::lock_guard lock(mutex);
  ++counts()[reinterpret_cast<std::uintptr_t>(kernel)];
}

}  // namespace bucket_moo::emulation

/// For tests in Python, which call it with ctypes: the launches in this process of the kernel whose symbol has this
/// value in the table of the library, as nm shows it.
extern "C" long bucket_moo_emulated_launches(std::uintptr_t symbol) {
  Dl_info library = {};
  if (dladdr(reinterpret_cast<const void*>(&bucket_moo::emulation::count_launch), &library) == 0) return 0;
  const std::lock_guard lock(bucket_moo::emulation::mutex);
  const auto found = bucket_moo::emulation::counts().find(reinterpret_cast<std::uintptr_t>(library.dli_fbase) + symbol);
  return found == bucket_moo::emulation::counts().end() ? 0 : found->second;
}
