// Devices and errors of the emulated CUDA runtime: one device.
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <utility>

#include "cuda_runtime_api.h"
#include "emulation.hpp"
#include "memory.hpp"

namespace bucket_moo::emulation {
namespace {

struct Faults {
  std::mutex mutex;
  bool collect = false;
  std::vector<std::string> found;
};

Faults& faults() {
  static Faults* const instance = new Faults;
  return *instance;
}

}  // namespace

void fault(const std::string& what) {
  Faults& f = faults();
  const std::lock_guard lock(f.mutex);
  if (!f.collect) {
    std::fprintf(stderr, "CUDA emulation: %s\n", what.c_str());
    std::abort();
  }
  f.found.push_back(what);
}

void collect_faults(bool collect) {
  Faults& f = faults();
  const std::lock_guard lock(f.mutex);
  f.collect = collect;
}

std::vector<std::string> take_faults() {
  Faults& f = faults();
  const std::lock_guard lock(f.mutex);
  return std::exchange(f.found, {});
}

}  // namespace bucket_moo::emulation

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

// Errors are returned at once and not kept.
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define BUCKET_MOO_EMULATED_ERROR(name, number) \
  case name:                                    \
    return #name;
    BUCKET_MOO_EMULATED_ERRORS(BUCKET_MOO_EMULATED_ERROR)
#undef BUCKET_MOO_EMULATED_ERROR
  }
  return "unknown";
}

const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
