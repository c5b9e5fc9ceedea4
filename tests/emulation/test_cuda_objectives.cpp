// The table of objectives as a warp makes it, against one lane; and what the emulation itself promises.
#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bucket_moo/lanes.hpp>
#include <bucket_moo/objective_table.hpp>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "checks.hpp"
#include "emulation.hpp"
#include "launch.cuh"

namespace {

using bucket_moo::StepLimits;
using bucket_moo::StepRecord;

struct Table {
  explicit Table(int world)
      : leader(static_cast<std::size_t>(world), -9),
        objective(leader),
        begin(static_cast<std::size_t>(world) + 1, -9),
        member(leader),
        share(static_cast<std::size_t>(world), -9.0) {}

  bucket_moo::ObjectiveTable pointers() {
    return {&header, leader.data(), objective.data(), share.data(), begin.data(), member.data()};
  }

  bucket_moo::StepHeader header;
  std::vector<int> leader, objective, begin, member;
  std::vector<double> share;
};

// What lanes have written is visible to all of them on return.
__global__ void make_table(const StepRecord* records, int world, StepLimits limits, bucket_moo::ObjectiveTable table,
                           int* seen) {
  bucket_moo::make_objective_table(bucket_moo::WarpLanes{}, records, world, limits, table);
  seen[threadIdx.x] = table.header->k;
}

void compare(const std::vector<StepRecord>& records, StepLimits limits) {
  const int world = static_cast<int>(records.size());
  Table host(world);
  Table warp(world);
  bucket_moo::make_objective_table(bucket_moo::HostLanes{}, records.data(), world, limits, host.pointers());
  std::vector<int> seen(32, -1);
  CHECK(bucket_moo::cuda::launch(make_table, {1, 32}, nullptr, records.data(), world, limits, warp.pointers(),
                                 seen.data()) == cudaSuccess);
  CHECK(seen == std::vector<int>(32, warp.header.k));
  const bucket_moo::StepHeader& a = host.header;
  const bucket_moo::StepHeader& b = warp.header;
  CHECK(a.k == b.k && a.one_to_one == b.one_to_one && a.error == b.error && a.culprit == b.culprit && a.step == b.step);
  if (a.error != bucket_moo::StepError::none) return;
  const auto k = static_cast<std::size_t>(a.k);
  CHECK(host.objective == warp.objective);
  CHECK(host.share == warp.share);
  for (std::size_t i = 0; i < k; ++i) CHECK(host.leader[i] == warp.leader[i]);
  for (std::size_t i = 0; i <= k; ++i) CHECK(host.begin[i] == warp.begin[i]);
  for (int m = 0; m < host.begin[k]; ++m) {
    CHECK(host.member[static_cast<std::size_t>(m)] == warp.member[static_cast<std::size_t>(m)]);
  }
}

/// What lasts from step to step.
struct Memory {
  Memory(int capacity, int world)
      : names(static_cast<std::size_t>(capacity)), first_names(names), slot(static_cast<std::size_t>(world), -9) {}

  bucket_moo::ObjectiveRegistry registry() {
    return {names.data(), &count, slot.data(), static_cast<int>(names.size())};
  }
  bucket_moo::FirstObjectives first() { return {first_names.data(), &first_count}; }

  std::vector<bucket_moo::ObjectiveName> names, first_names;
  std::vector<int> slot;
  int count = 0;
  int first_count = 0;
};

__global__ void remember(const StepRecord* records, bucket_moo::ObjectiveTable table,
                         bucket_moo::ObjectiveRegistry registry, int* seen) {
  bucket_moo::assign_slots(bucket_moo::WarpLanes{}, records, table, registry);
  seen[threadIdx.x] = table.header->k + *registry.count;
}
__global__ void require_same(const StepRecord* records, bucket_moo::ObjectiveTable table,
                             bucket_moo::FirstObjectives first, int* seen) {
  bucket_moo::require_same_objectives(bucket_moo::WarpLanes{}, records, table, first);
  seen[threadIdx.x] = table.header->k + *first.count;
}

bool same_names(const std::vector<bucket_moo::ObjectiveName>& a, const std::vector<bucket_moo::ObjectiveName>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!bucket_moo::same_name(a[i], b[i])) return false;
  }
  return true;
}

/// A step of `host` with one lane, and of `warp` with the kernels; the same comes of both. \return its error
bucket_moo::StepError step_of(const std::vector<StepRecord>& records, bool same, Memory& host, Memory& warp) {
  const int world = static_cast<int>(records.size());
  Table table(world);
  bucket_moo::make_objective_table(bucket_moo::HostLanes{}, records.data(), world, {}, table.pointers());
  Table of_warp = table;
  bucket_moo::HostLanes lanes;
  std::vector<int> seen(32, -1);
  if (same) {
    bucket_moo::require_same_objectives(lanes, records.data(), table.pointers(), host.first());
    CHECK(bucket_moo::cuda::launch(require_same, {1, 32}, nullptr, records.data(), of_warp.pointers(), warp.first(),
                                   seen.data()) == cudaSuccess);
    CHECK(seen == std::vector<int>(32, of_warp.header.k + warp.first_count));
  } else {
    bucket_moo::assign_slots(lanes, records.data(), table.pointers(), host.registry());
    CHECK(bucket_moo::cuda::launch(remember, {1, 32}, nullptr, records.data(), of_warp.pointers(), warp.registry(),
                                   seen.data()) == cudaSuccess);
    CHECK(seen == std::vector<int>(32, of_warp.header.k + warp.count));
  }
  const bucket_moo::StepHeader& a = table.header;
  const bucket_moo::StepHeader& b = of_warp.header;
  CHECK(a.k == b.k && a.error == b.error && a.culprit == b.culprit);
  CHECK(host.count == warp.count && host.first_count == warp.first_count && host.slot == warp.slot);
  CHECK(same_names(host.names, warp.names) && same_names(host.first_names, warp.first_names));
  return a.error;
}

std::vector<StepRecord> records_of(int world, int names) {
  std::vector<StepRecord> records(static_cast<std::size_t>(world));
  for (std::size_t r = 0; r < records.size(); ++r) {
    const std::string name = "objective " + std::to_string(r * 7 % static_cast<std::size_t>(names));
    std::memcpy(records[r].objective.text(), name.data(), name.size());
    records[r].weight = r % 5 == 4 ? 0.0 : 0.25 * static_cast<double>(r % 3 + 1);
    records[r].step = 12;
  }
  return records;
}

void tables() {
  for (const int world : {1, 2, 31, 32, 33, 64, 200}) {
    for (const int names : {1, 3, 8, 64, 1000}) {
      checks::context = "W=" + std::to_string(world) + " names=" + std::to_string(names);
      std::vector<StepRecord> records = records_of(world, names);
      compare(records, {});
      compare(records, {bucket_moo::kMaxObjectives, 3});
      for (StepRecord& record : records) record.weight = 1.0;
      compare(records, {});
      records.back().numel = 5;
      compare(records, {});
      records[0].operation = static_cast<std::int32_t>(bucket_moo::Operation::invalid);
      compare(records, {});
    }
  }
}

void objectives_of_the_first_step() {
  using bucket_moo::StepError;
  for (const int names : {1, 3, 40}) {
    checks::context = "first objectives, names=" + std::to_string(names);
    Memory host(64, 40);
    Memory warp(64, 40);
    std::vector<StepRecord> records = records_of(40, names);
    CHECK(step_of(records, true, host, warp) == StepError::none);
    CHECK(host.first_count == names);
    CHECK(step_of(records, true, host, warp) == StepError::none);
    records[1].objective.text()[0] = 'x';
    CHECK(step_of(records, true, host, warp) == StepError::other_objectives);
    CHECK(step_of(records_of(40, names + 1), true, host, warp) == StepError::other_objectives);
  }
}

void slots_last() {
  using bucket_moo::StepError;
  for (const int names : {1, 3, 40}) {
    checks::context = "slots, names=" + std::to_string(names);
    Memory host(names + 2, 40);
    Memory warp(names + 2, 40);
    std::vector<StepRecord> records = records_of(40, names);
    CHECK(step_of(records, false, host, warp) == StepError::none);
    CHECK(host.count == names);
    records.erase(records.begin());  // numbers are not places
    for (int more = 0; more < 3; ++more) {
      records[0].objective.text()[0] = static_cast<char>('x' + more);
      CHECK(step_of(records, false, host, warp) == (more < 2 ? StepError::none : StepError::too_many_names));
    }
    CHECK(host.count == names + 2);
  }
}

// ---- the emulation -------------------------------------------------------------------------------------------------

__global__ void diverges() {
  if (threadIdx.x < 5) __syncwarp();
}
__global__ void leaves_the_block() {
  if (threadIdx.x < 32) __syncthreads();
}
__global__ void writes_beyond() { bucket_moo::cuda::dynamic_shared<char>()[16 + threadIdx.x] = 1; }

__global__ void counts(int* out, float* shared_was) {
  int* const cell = bucket_moo::cuda::dynamic_shared<int>();
  if (threadIdx.x == 0) {
    if (blockIdx.x == 0) *shared_was = bucket_moo::cuda::dynamic_shared<float>()[0];
    *cell = 0;
  }
  __syncthreads();
  for (unsigned t = 0; t < blockDim.x; ++t) {
    if (threadIdx.x == t) ++*cell;
    __syncthreads();
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = *cell;
}

/// Whether the process ends by abort().
template <class Run>
bool aborts(Run run) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    run();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void mistakes_are_found() {
  checks::context = "mistakes";
  using bucket_moo::cuda::launch;
  CHECK(aborts([] { static_cast<void>(launch(diverges, {1, 32}, nullptr)); }));
  CHECK(aborts([] { static_cast<void>(launch(leaves_the_block, {1, 64}, nullptr)); }));
  CHECK(aborts([] { static_cast<void>(launch(writes_beyond, {1, 32, 16}, nullptr)); }));
  CHECK(!aborts([] { static_cast<void>(launch(writes_beyond, {1, 32, 64}, nullptr)); }));
  CHECK(launch(diverges, {0, 32}, nullptr) == cudaErrorInvalidConfiguration);
  CHECK(launch(diverges, {1, 2048}, nullptr) == cudaErrorInvalidConfiguration);
  CHECK(launch(diverges, {1, 32, 300 * 1024}, nullptr) == cudaErrorInvalidValue);
}

void several_threads_launch() {
  checks::context = "several OS threads";
  std::vector<std::thread> threads;
  std::vector<std::vector<int>> out(4, std::vector<int>(3 * 96, -1));
  std::vector<float> was(4, 0.0F);
  for (std::size_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int again = 0; again < 5; ++again) {
        static_cast<void>(bucket_moo::cuda::launch(counts, {3, 96, 16}, nullptr, out[i].data(), &was[i]));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(out[i] == std::vector<int>(3 * 96, 96));
    CHECK(was[i] != was[i]);
  }
}

}  // namespace

int main() {
  for (const bool reverse : {false, true}) {
    bucket_moo::emulation::set_reverse_order(reverse);
    tables();
    objectives_of_the_first_step();
    slots_last();
  }
  bucket_moo::emulation::set_reverse_order(false);
  mistakes_are_found();
  several_threads_launch();
  return checks::finish();
}
