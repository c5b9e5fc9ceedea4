// How launches fill a device, and what they ask the runtime for it. By count: nothing here is timed.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "checks.hpp"
#include "combine.cuh"
#include "emulation.hpp"
#include "gramian.cuh"
#include "gramian_plan.cuh"
#include "solve.cuh"
#include "tile.hpp"

namespace {

using bucket_moo::DType;
using namespace bucket_moo::cuda;
using tiles::Tile;

constexpr int kMultiprocessors[] = {132, 148};  // of an H100, of a B200

/// Bytes that a multiprocessor has to have asked for to get its share of the bandwidth, by Little's law, with 700 ns
/// from asking to having: 3.35 TB/s for the 132 of an H100, 8 TB/s for the 148 of a B200.
constexpr double kInFlight[] = {700e-9 * 3.35e12 / 132, 700e-9 * 8e12 / 148};

/// DDP's buckets are of 25 MB or, as it counts them, 25 MiB, but for whole parameters and the tail.
void buckets_fill_the_device() {
  for (const double bytes : {25e6, 25.0 * (1 << 20), 25.3e6, 100e6}) {
    for (const std::size_t element : {std::size_t{4}, std::size_t{2}}) {
      for (const int k : {2, 4, 8, 16}) {
        for (int device = 0; device < 2; ++device) {
          const int count = kMultiprocessors[device];
          const auto size = static_cast<std::int64_t>(bytes / k / static_cast<double>(element)) | 1;
          const SmallPlan plan = plan_small(size, element, k, count * small_resident(k));
          checks::context = std::to_string(bytes / 1e6) + " MB, K=" + std::to_string(k) + ", element of " +
                            std::to_string(element) + ", " + std::to_string(count) +
                            " multiprocessors: " + std::to_string(plan.blocks) + " blocks, " +
                            std::to_string(plan.units) + " units a warp";
          CHECK(plan.blocks == count * small_resident(k));  // in one wave, of which every multiprocessor has its share
          CHECK(plan.units >= 2);                           // so that one more is no large part
          const double under_way = small_resident(k) * kGramianWarps * 32.0 * 16.0 * k * small_unroll(k);
          CHECK(under_way >= kInFlight[device]);
        }
      }
    }
  }
}

void plans_cover_any_size() {
  for (const std::size_t element : {std::size_t{4}, std::size_t{2}}) {
    for (const int k : {2, 4, 6, 16}) {
      CHECK(small_most_steps(element) % small_unroll(k) == 0);
      CHECK(small_most_steps(element) * small_step(element) == kMaxFloat32Sum);
      for (const int most : {1, 32, 264}) {
        for (std::int64_t size = 0; size < 3000000; size = size * 5 / 3 + 1) {
          const SmallPlan plan = plan_small(size, element, k, most);
          checks::context = "size " + std::to_string(size) + ", at most " + std::to_string(most) + " blocks";
          CHECK(plan.blocks >= 1 && plan.blocks <= most);
          const std::int64_t warps = plan.blocks * kGramianWarps;
          CHECK(plan.units >= 0 && plan.more >= 0 && plan.more < warps);
          const std::int64_t unit = small_unroll(k) * small_step(element);
          const std::int64_t covered = (plan.units * warps + plan.more) * unit;
          CHECK(covered >= size && covered - size < unit);
        }
      }
    }
  }
}

struct Launches {
  explicit Launches(int k) : tile(DType::float32, k, 700), coefficient(static_cast<std::size_t>(k), 0.25), out(700) {
    std::size_t bytes = 0;
    CHECK(gramian_workspace_size(k, &bytes) == cudaSuccess);
    workspace.resize(bytes);
  }

  bool run() {
    const auto k = static_cast<std::size_t>(tile.count());
    std::vector<double> packed(k * (k + 1) / 2);
    GramianArguments arguments;
    arguments.rows = tile.device();
    arguments.packed = packed.data();
    arguments.workspace = workspace.data();
    arguments.tickets = tickets.data();
    return launch_gramian(arguments, nullptr) == cudaSuccess &&
           launch_combine(tile.device(), coefficient.data(), out.data(), nullptr) == cudaSuccess;
  }

  Tile tile;
  std::vector<double> coefficient;
  std::vector<float> out;
  std::vector<char> workspace;
  std::vector<unsigned> tickets = std::vector<unsigned>(kGramianTickets, 0u);
};

/// The tiled kernel (K = 20) has more shared memory than it may have unasked.
void the_runtime_is_asked_once() {
  checks::context = "questions";
  const auto questions = [](Launches& launches) {
    const long before = bucket_moo::emulation::questions();
    CHECK(launches.run());
    return bucket_moo::emulation::questions() - before;
  };
  Launches few(4);
  Launches many(20);
  CHECK(questions(few) > 0);
  CHECK(questions(many) > 0);
  for (int i = 0; i < 3; ++i) {
    CHECK(questions(few) == 0);
    CHECK(questions(many) == 0);
  }
  bucket_moo::emulation::set_multiprocessors(3);  // stands for another device
  CHECK(questions(few) > 0);
  CHECK(questions(few) == 0);
}

/// What a kernel was allowed for many objectives it still has after a launch for fewer.
void shared_memory_is_never_taken_back() {
  checks::context = "shared memory";
  for (const int k : {64, 56, 64}) {
    const auto count = static_cast<std::size_t>(k);
    std::vector<double> gramian(count * count, 0.0);
    std::vector<double> weights(count);
    for (std::size_t i = 0; i < count; ++i) gramian[i * count + i] = 1.0;
    SolveBatch batch;
    batch.method.id = bucket_moo::MethodId::cagrad;
    batch.batch = 1;
    batch.k = k;
    batch.gramians = gramian.data();
    batch.weights = weights.data();
    CHECK(launch_solve(batch, nullptr) == cudaSuccess);
  }
}

void threads_may_ask_together() {
  checks::context = "threads";
  std::deque<Launches> all;
  for (int i = 0; i < 4; ++i) all.emplace_back(20);
  bucket_moo::emulation::set_multiprocessors(2);
  const long before = bucket_moo::emulation::questions();
  std::vector<std::thread> threads;
  std::atomic<int> succeeded = 0;
  for (Launches& launches : all) threads.emplace_back([&] { succeeded += launches.run() ? 1 : 0; });
  for (std::thread& thread : threads) thread.join();
  CHECK(succeeded == 4);
  // Multiprocessors; shared memory and blocks of the tiled kernel; blocks of the combination.
  CHECK(bucket_moo::emulation::questions() - before == 4);
}

}  // namespace

int main() {
  buckets_fill_the_device();
  plans_cover_any_size();
  the_runtime_is_asked_once();
  shared_memory_is_never_taken_back();
  threads_may_ask_together();
  return checks::finish();
}
