// Blocks, warps and barriers.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_runtime.h"
#include "device_facts.cuh"
#include "emulation.hpp"
#include "fibre.hpp"
#include "memory.hpp"
#include "observer.hpp"
#include "operations.hpp"
#include "streams.hpp"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace bucket_moo::emulation {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxGrid = 0x7fffffff;
constexpr std::size_t kStack = 256 * 1024;
constexpr std::size_t kMaxShared = 227 * 1024;  // of a block, as on an sm_90
constexpr std::size_t kSharedWithoutOptIn = 48 * 1024;
constexpr std::size_t kGuard = 1024;  // bytes behind a block's shared memory that must stay as they are
constexpr int kPoison = 0xff;         // as float and as double a NaN
constexpr std::uint64_t kStackEnd = 0x5afe57acc0ffee00ULL;

int initial_multiprocessors() {
  const char* const text = std::getenv("BUCKET_MOO_EMULATED_SMS");
  const int count = text == nullptr ? 0 : std::atoi(text);
  return count > 0 ? count : 2;
}

const char* name_of(Wait wait) {
  constexpr const char* kNames[] = {"running",          "__syncwarp",    "__shfl_sync",      "__ballot_sync",
                                    "__reduce_or_sync", "__syncthreads", "__syncthreads_or", "its end"};
  return kNames[static_cast<int>(wait)];
}

struct Thread {
  Fibre fibre;
  std::unique_ptr<std::uint64_t[]> stack;
  Wait wait = Wait::none;
  int given = 0;  ///< to block_barrier()
};

struct Warp {
  std::uint64_t value[2][kWarp] = {};  ///< two, so that a lane may write its next one while others still read
  int turn[kWarp] = {};
};

}  // namespace
}  // namespace bucket_moo::emulation

// What the kernels' dynamic_shared() declares.
namespace bucket_moo::cuda {
alignas(1024) unsigned char dynamic_shared_bytes[bucket_moo::emulation::kMaxShared + bucket_moo::emulation::kGuard];
}

namespace bucket_moo::emulation {
namespace {

/// The emulated GPU. Everything is under `mutex` while a grid runs.
struct Device {
  std::mutex mutex;
  std::mutex settings_mutex;
  std::map<const void*, std::size_t> shared_limit;
  int multiprocessors = initial_multiprocessors();
  bool reverse = false;
  std::function<void()> fence;
  long questions = 0;

  std::vector<std::unique_ptr<Thread>> threads;  ///< kept from launch to launch, with their stacks
  std::vector<Warp> warps = std::vector<Warp>(kMaxThreads / kWarp);
  Fibre scheduler;
  Observer* observer = nullptr;
  const std::function<void()>* body = nullptr;
  int current = 0;
  int count = 0;  ///< threads of the block
  int block_or = 0;
};

Device& device() {
  static Device* const instance = new Device;  // never destroyed: kernels may run while the process ends
  return *instance;
}

[[noreturn]] void fail(const char* what) {
  Device& d = device();
  std::fprintf(stderr, "CUDA emulation: %s (block %u; threads wait at:", what, blockIdx.x);
  for (int t = 0; t < d.count; ++t) {
    const Wait wait = d.threads[static_cast<std::size_t>(t)]->wait;
    if (t == 0 || wait != d.threads[static_cast<std::size_t>(t - 1)]->wait) {
      std::fprintf(stderr, " from %d %s", t, name_of(wait));
    }
  }
  std::fprintf(stderr, ")\n");
  std::abort();
}

void wait_here(Wait wait) {
  Device& d = device();
  const int self = d.current;
  Thread& thread = *d.threads[static_cast<std::size_t>(self)];
  thread.wait = wait;
  d.scheduler.resume(thread.fibre);
}

/// What every fibre runs, launch after launch.
void fibre_main() {
  for (;;) {
    (*device().body)();
    wait_here(Wait::done);
  }
}

void make_threads(int count) {
  Device& d = device();
  while (static_cast<int>(d.threads.size()) < count) {
    auto thread = std::make_unique<Thread>();
    thread->stack = std::make_unique_for_overwrite<std::uint64_t[]>(kStack / sizeof(std::uint64_t));
    thread->stack[0] = kStackEnd;
    thread->fibre.start(thread->stack.get(), kStack, fibre_main);
    d.threads.push_back(std::move(thread));
  }
}

bool of_warp(Wait wait) {
  return wait == Wait::warp_sync || wait == Wait::shuffle || wait == Wait::ballot || wait == Wait::reduce_or;
}

/// Runs the warp until all of its lanes wait for the block, or are done.
void run_warp(int first, int lanes) {
  Device& d = device();
  for (;;) {
    for (int i = 0; i < lanes; ++i) {
      const int t = first + (d.reverse ? lanes - 1 - i : i);
      Thread& thread = *d.threads[static_cast<std::size_t>(t)];
      d.current = t;
      threadIdx = {static_cast<unsigned>(t), 0, 0};
      thread.wait = Wait::none;
      if (d.observer != nullptr) d.observer->thread_runs(t, {thread.stack.get(), kStack});
      thread.fibre.resume(d.scheduler);
    }
    const Wait wait = d.threads[static_cast<std::size_t>(first)]->wait;
    for (int t = first; t < first + lanes; ++t) {
      if (d.threads[static_cast<std::size_t>(t)]->wait != wait) fail("the lanes of a warp went different ways");
    }
    if (!of_warp(wait)) return;
    if (lanes != kWarp) fail("a warp with fewer than 32 lanes synchronises");
    // The other collectives exchange values of registers, and do not order memory.
    if (wait == Wait::warp_sync && d.observer != nullptr) d.observer->warp_synchronised();
  }
}

void run_block() {
  Device& d = device();
  const int warps = (d.count + kWarp - 1) / kWarp;
  for (;;) {
    for (int i = 0; i < warps; ++i) {
      const int first = (d.reverse ? warps - 1 - i : i) * kWarp;
      run_warp(first, d.count - first < kWarp ? d.count - first : kWarp);
    }
    const Wait wait = d.threads[0]->wait;
    d.block_or = 0;
    for (int t = 0; t < d.count; ++t) {
      const Thread& thread = *d.threads[static_cast<std::size_t>(t)];
      if (thread.wait != wait) fail("not all threads of a block reach the same barrier");
      if (thread.stack[0] != kStackEnd) fail("a thread's stack is too small");
      d.block_or |= thread.given;
    }
    if (wait == Wait::done) return;
    if (d.observer != nullptr) d.observer->block_synchronised();
  }
}

}  // namespace

const std::uint64_t* exchange(Wait wait, unsigned mask, std::uint64_t mine) {
  Device& d = device();
  if (mask != 0xffffffffu) fail("a collective of a part of a warp");
  Warp& warp = d.warps[static_cast<std::size_t>(d.current / kWarp)];
  const int lane = d.current % kWarp;
  const int turn = warp.turn[lane] ^= 1;
  warp.value[turn][lane] = mine;
  wait_here(wait);
  return warp.value[turn];
}

int block_barrier(Wait wait, int mine) {
  Device& d = device();
  d.threads[static_cast<std::size_t>(d.current)]->given = mine;
  wait_here(wait);
  return d.block_or;
}

namespace {

void run_grid(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& body) {
  Device& d = device();
  const std::lock_guard lock(d.mutex);
  const dim3 block = config.blockDim;
  const dim3 grid = config.gridDim;
  d.count = static_cast<int>(block.x);
  d.body = &body;
  blockDim = block;
  gridDim = grid;
  make_threads(d.count);
  unsigned char* const shared = cuda::dynamic_shared_bytes;
  const std::size_t used = config.dynamicSmemBytes;
  if (d.observer != nullptr) d.observer->grid_begins(kernel, {shared, used});
  for (unsigned b = 0; b < grid.x; ++b) {
    blockIdx = {d.reverse ? grid.x - 1 - b : b, 0, 0};
    std::memset(shared, kPoison, used + kGuard);
    if (d.observer != nullptr) d.observer->block_begins(blockIdx.x);
    run_block();
    for (std::size_t i = used; i < used + kGuard; ++i) {
      if (shared[i] != kPoison) fail("a write beyond the end of shared memory");
    }
  }
  if (d.observer != nullptr) d.observer->grid_ends();
  d.body = nullptr;
}

/// What a GPU would refuse. Kernels with several dimensions are not emulated.
cudaError_t check_launch(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 block = config.blockDim;
  const dim3 grid = config.gridDim;
  if (block.x == 0 || block.x > kMaxThreads || block.y != 1 || block.z != 1) return cudaErrorInvalidConfiguration;
  if (grid.x == 0 || grid.x > kMaxGrid || grid.y != 1 || grid.z != 1) return cudaErrorInvalidConfiguration;
  Device& d = device();
  const std::lock_guard lock(d.settings_mutex);
  const auto limit = d.shared_limit.find(kernel);
  const bool fits = config.dynamicSmemBytes <= (limit == d.shared_limit.end() ? kSharedWithoutOptIn : limit->second);
  return fits ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_grid(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> body) {
  const cudaError_t status = check_launch(config, kernel);
  if (status != cudaSuccess) return status;
  return enqueue(config.stream,
                 {.name = "kernel", .kind = &Operations::kernels, .run = [config, kernel, body = std::move(body)] {
                    run_grid(config, kernel, body);
                    return cudaSuccess;
                  }});
}

void threadfence_system() {
  system_fence();
  if (device().fence) device().fence();
}

void on_system_fence(std::function<void()> look) {
  Device& d = device();
  const std::lock_guard lock(d.mutex);
  d.fence = std::move(look);
}

cudaError_t set_shared_limit(const void* kernel, int bytes) {
  if (bytes < 0 || static_cast<std::size_t>(bytes) > kMaxShared) return cudaErrorInvalidValue;
  Device& d = device();
  const std::lock_guard lock(d.settings_mutex);
  ++d.questions;
  d.shared_limit[kernel] = static_cast<std::size_t>(bytes);
  return cudaSuccess;
}

cudaError_t occupancy(int* blocks, const void* kernel, int threads, std::size_t shared) {
  if (threads <= 0 || threads > static_cast<int>(kMaxThreads)) return cudaErrorInvalidValue;
  Device& d = device();
  const std::lock_guard lock(d.settings_mutex);
  ++d.questions;
  const auto limit = d.shared_limit.find(kernel);
  const bool fits = shared <= (limit == d.shared_limit.end() ? kSharedWithoutOptIn : limit->second);
  const int by_threads = 2048 / threads;
  const int by_shared = shared == 0 ? by_threads : static_cast<int>((kMaxShared + kGuard) / (shared + kGuard));
  // A few are enough to see what several do, and run faster than all.
  const int most = by_threads < 2 ? by_threads : 2;
  *blocks = !fits ? 0 : by_shared < most ? by_shared : most;
  return cudaSuccess;
}

void set_multiprocessors(int count) {
  Device& d = device();
  const std::lock_guard lock(d.settings_mutex);
  d.multiprocessors = count;
  cuda::DeviceFacts::instance().forget();
}

void set_reverse_order(bool reverse) {
  Device& d = device();
  const std::lock_guard lock(d.mutex);
  d.reverse = reverse;
}

void threadfence() {
  if (Observer* const observer = device().observer; observer != nullptr) observer->thread_fenced();
}

void set_observer(Observer* observer) {
  Device& d = device();
  const std::lock_guard lock(d.mutex);
  d.observer = observer;
}

long launches() { return operations().kernels; }

long questions() {
  Device& d = device();
  const std::lock_guard lock(d.settings_mutex);
  return d.questions;
}

}  // namespace bucket_moo::emulation

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device_number) {
  if (device_number != 0) return cudaErrorInvalidDevice;
  bucket_moo::emulation::Device& d = bucket_moo::emulation::device();
  const std::lock_guard lock(d.settings_mutex);
  ++d.questions;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = d.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(bucket_moo::emulation::kMaxShared);
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}
