// The race detector finds races that are planted, in whatever order threads run, and none where there is none.
#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "checks.hpp"
#include "emulation.hpp"
#include "launch.cuh"
#include "race_detector.hpp"

namespace {

using bucket_moo::cuda::dynamic_shared;
using bucket_moo::cuda::kAllLanes;
using bucket_moo::cuda::launch;
using bucket_moo::emulation::AccessKind;
using bucket_moo::emulation::Race;
using bucket_moo::emulation::take_races;

/// How a kernel orders its two parts.
enum class Order { none, shuffle, vote, reduction, warp, block, block_vote };

__device__ void keep(Order order) {
  switch (order) {
    case Order::none:
      break;
    case Order::shuffle:
      __shfl_sync(kAllLanes, 1, 0);
      break;
    case Order::vote:
      __ballot_sync(kAllLanes, 1);
      break;
    case Order::reduction:
      __reduce_or_sync(kAllLanes, 1);
      break;
    case Order::warp:
      __syncwarp();
      break;
    case Order::block:
      __syncthreads();
      break;
    case Order::block_vote:
      __syncthreads_or(1);
      break;
  }
}

/// Every thread writes a cell and reads the one that is `distance` further on.
__global__ void passes_on(int* cells, Order order, unsigned distance) {
  cells[threadIdx.x] = 1;
  keep(order);
  const int other = cells[(threadIdx.x + distance) % blockDim.x];
  keep(order);
  cells[threadIdx.x] = other;
}
__global__ void passes_on_in_shared_memory(Order order, unsigned distance) {
  int* const cells = dynamic_shared<int>();
  cells[threadIdx.x] = 1;
  keep(order);
  cells[blockDim.x + threadIdx.x] = cells[(threadIdx.x + distance) % blockDim.x];
}

/// All read, `writer` among them; then it writes.
__global__ void all_read_one_writes(int* cell, int* out, Order order, unsigned writer) {
  out[threadIdx.x] = *cell;
  keep(order);
  if (threadIdx.x == writer) *cell = 5;
}

__global__ void blocks_write_a_cell(int* cell, bool each_its_own) {
  if (threadIdx.x == 0) cell[each_its_own ? blockIdx.x : 0] = 1;
}
__global__ void blocks_read_a_cell(const int* cell, int* out) { out[blockIdx.x * blockDim.x + threadIdx.x] = *cell; }
/// Of all blocks one writes what the others read.
__global__ void a_block_writes_for_others(int* cell, int* out, unsigned writer) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == writer) {
    *cell = 1;
  } else {
    out[blockIdx.x] = *cell;
  }
}

/// Neighbours of two bytes; then, without order, all four bytes of two neighbours.
__global__ void halves(std::uint16_t* half, std::uint32_t* out, bool read_whole) {
  half[threadIdx.x] = 1;
  if (read_whole && threadIdx.x % 2 == 0) out[threadIdx.x / 2] = *reinterpret_cast<std::uint32_t*>(half + threadIdx.x);
}

struct Record {
  double values[9];
};
__global__ void write_records(Record own, Record* records, bool each_its_own) {
  records[each_its_own ? threadIdx.x : 0] = own;
}

__global__ void counts(int* counter, bool plain) {
  if (plain && threadIdx.x == 1 && blockIdx.x == 1) {
    *counter = 7;
  } else {
    atomicAdd(counter, 1);
  }
}

/// The last block reads what all have written, and may be told so by its first thread.
__global__ void last_block_reads(int* cells, unsigned* ticket, int* out, bool fence_before, bool fence_after) {
  cells[blockIdx.x * blockDim.x + threadIdx.x] = 1;
  __syncthreads();
  bool last = false;
  if (threadIdx.x == 0) {
    if (fence_before) __threadfence();
    last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    if (fence_after) __threadfence();
  }
  if (__syncthreads_or(last ? 1 : 0) == 0) return;
  for (unsigned b = 0; b < gridDim.x; ++b) out[threadIdx.x] += cells[b * blockDim.x + threadIdx.x];
}

/// The races of one launch, in either order of threads.
template <class... Parameters, class... Arguments>
std::vector<Race> races_of(void (*kernel)(Parameters...), bucket_moo::cuda::LaunchShape shape, Arguments... arguments) {
  bucket_moo::emulation::set_reverse_order(false);
  CHECK(launch(kernel, shape, nullptr, arguments...) == cudaSuccess);
  std::vector<Race> races = take_races();
  bucket_moo::emulation::set_reverse_order(true);
  CHECK(launch(kernel, shape, nullptr, arguments...) == cudaSuccess);
  CHECK(take_races().empty() == races.empty());
  bucket_moo::emulation::set_reverse_order(false);
  return races;
}

void of_a_warp() {
  for (const Order order :
       {Order::none, Order::shuffle, Order::vote, Order::reduction, Order::warp, Order::block, Order::block_vote}) {
    checks::context = "a warp, order " + std::to_string(static_cast<int>(order));
    const bool ordered = order >= Order::warp;
    std::vector<int> cells(32);
    std::vector<int> out(32);
    CHECK(races_of(passes_on, {1, 32}, cells.data(), order, 1U).empty() == ordered);
    CHECK(races_of(passes_on, {1, 32}, cells.data(), order, 0U).empty());  // its own
    CHECK(races_of(passes_on_in_shared_memory, {1, 32, 256}, order, 1U).empty() == ordered);
    for (const unsigned writer : {0U, 9U, 31U}) {
      CHECK(races_of(all_read_one_writes, {1, 32}, cells.data(), out.data(), order, writer).empty() == ordered);
    }
  }
}

void of_a_block() {
  for (const Order order : {Order::none, Order::shuffle, Order::warp, Order::block, Order::block_vote}) {
    checks::context = "a block, order " + std::to_string(static_cast<int>(order));
    const bool ordered = order >= Order::block;
    std::vector<int> cells(96);
    std::vector<int> out(96);
    CHECK(races_of(passes_on, {1, 96}, cells.data(), order, 32U).empty() == ordered);
    CHECK(races_of(passes_on_in_shared_memory, {2, 96, 768}, order, 32U).empty() == ordered);
    for (const unsigned writer : {0U, 33U, 95U}) {
      CHECK(races_of(all_read_one_writes, {1, 96}, cells.data(), out.data(), order, writer).empty() == ordered);
    }
  }
}

void of_several_blocks() {
  checks::context = "several blocks";
  std::vector<int> cells(4);
  std::vector<int> out(128);
  CHECK(!races_of(blocks_write_a_cell, {2, 32}, cells.data(), false).empty());
  CHECK(races_of(blocks_write_a_cell, {1, 32}, cells.data(), false).empty());
  CHECK(races_of(blocks_write_a_cell, {4, 32}, cells.data(), true).empty());
  CHECK(races_of(blocks_read_a_cell, {4, 32}, cells.data(), out.data()).empty());  // what launches before it wrote
  for (unsigned writer = 0; writer < 4; ++writer) {
    CHECK(!races_of(a_block_writes_for_others, {4, 32}, cells.data(), out.data(), writer).empty());
  }
}

void of_parts_and_wholes() {
  checks::context = "sizes";
  std::vector<std::uint32_t> whole(32);
  std::vector<std::uint32_t> out(32);
  auto* const half = reinterpret_cast<std::uint16_t*>(whole.data());
  CHECK(races_of(halves, {1, 64}, half, out.data(), false).empty());
  CHECK(!races_of(halves, {1, 64}, half, out.data(), true).empty());
  std::vector<Record> records(32);
  CHECK(races_of(write_records, {1, 32}, Record{}, records.data(), true).empty());
  CHECK(!races_of(write_records, {1, 32}, Record{}, records.data(), false).empty());
}

void of_atomic_operations() {
  checks::context = "atomic operations";
  int counter = 0;
  CHECK(races_of(counts, {4, 64}, &counter, false).empty());
  CHECK(counter == 2 * 4 * 64);
  CHECK(!races_of(counts, {4, 64}, &counter, true).empty());

  for (const bool before : {false, true}) {
    for (const bool after : {false, true}) {
      std::vector<int> cells(4 * 64);
      std::vector<int> out(64);
      unsigned ticket = 0;
      CHECK(races_of(last_block_reads, {4, 64}, cells.data(), &ticket, out.data(), before, after).empty() ==
            (before && after));
    }
  }
}

void reports_say_where() {
  checks::context = "reports";
  std::vector<int> cells(64);
  std::vector<int> out(64);
  const std::vector<Race> races = races_of(all_read_one_writes, {1, 64}, cells.data(), out.data(), Order::none, 63U);
  CHECK(races.size() == 1);
  const Race& race = races.front();
  CHECK(race.kernel == reinterpret_cast<const void*>(all_read_one_writes) && !race.shared);
  CHECK(race.earlier.kind == AccessKind::read && race.later.kind == AccessKind::write);
  CHECK(race.later.thread == 63 && race.later.block == 0 && race.earlier.thread != 63);
  CHECK(races_of(passes_on_in_shared_memory, {3, 64, 512}, Order::none, 1U).front().shared);

  // A program with races that nobody took ends with an error, and says where they are.
  int ends[2];
  CHECK(pipe(ends) == 0);
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    static_cast<void>(launch(blocks_write_a_cell, {2, 32}, nullptr, cells.data(), false));
    std::exit(0);
  }
  close(ends[1]);
  std::string said;
  char buffer[256];
  for (ssize_t n = 0; (n = read(ends[0], buffer, sizeof(buffer))) > 0;)
    said.append(buffer, static_cast<std::size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1);
  CHECK(said.find("blocks_write_a_cell") != std::string::npos);
  CHECK(said.find("write by thread 0 of block 1") != std::string::npos);
  CHECK(said.find("test_race_detector.cpp:") != std::string::npos);
}

}  // namespace

int main() {
  of_a_warp();
  of_a_block();
  of_several_blocks();
  of_parts_and_wholes();
  of_atomic_operations();
  reports_say_where();
  return checks::finish();
}
