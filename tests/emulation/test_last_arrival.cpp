// The last of several blocks to come goes on with what all of them wrote; and what shows where its terms are broken.
#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "checks.hpp"
#include "emulation.hpp"
#include "last_arrival.cuh"
#include "launch.cuh"

namespace {

namespace cuda = bucket_moo::cuda;

constexpr int kThreads = 64;

/// Every thread writes a number, the last block adds up all of them. \param arriving threads of a block that take part
__global__ void add_up(double* parts, unsigned* ticket, int count, int arriving, double* sum) {
  if (static_cast<int>(threadIdx.x) >= arriving) return;
  parts[blockIdx.x * kThreads + threadIdx.x] = 1.0 + blockIdx.x;
  if (!cuda::is_last_arrival(ticket, count) || threadIdx.x != 0) return;
  *sum = 0.0;
  for (unsigned i = 0; i < gridDim.x * kThreads; ++i) *sum += parts[i];
}

struct Grid {
  explicit Grid(int count) : blocks(count), parts(static_cast<std::size_t>(count) * kThreads, kNone) {}

  /// \\param missing how many fewer blocks there are than is said
  void run(int missing = 0, int arriving = kThreads) {
    sum = kNone;
    const cuda::LaunchShape shape{static_cast<unsigned>(blocks), kThreads};
    CHECK(cuda::launch(add_up, shape, nullptr, parts.data(), &ticket, blocks + missing, arriving, &sum) == cudaSuccess);
  }
  bool right() const { return sum == kThreads * blocks * (blocks + 1) / 2.0 && ticket == 0; }

  static constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  int blocks;
  std::vector<double> parts;
  unsigned ticket = 0;
  double sum = kNone;
};

void the_last_one_sees_all() {
  for (const bool reverse : {false, true}) {
    bucket_moo::emulation::set_reverse_order(reverse);
    for (const int blocks : {1, 2, 7, 64}) {
      checks::context = std::to_string(blocks) + " blocks";
      Grid grid(blocks);
      for (int launch = 0; launch < 3; ++launch) {  // the ticket serves again
        grid.run();
        CHECK(grid.right());
      }
    }
  }
  bucket_moo::emulation::set_reverse_order(false);
}

void broken_terms_show() {
  checks::context = "a ticket that was not 0";
  Grid early(4);
  early.ticket = 1;
  early.run();
  CHECK(std::isnan(early.sum));  // of parts that had not come
  CHECK(!early.right());
  checks::context = "fewer blocks than are said";
  Grid waiting(4);
  waiting.run(1);
  CHECK(std::isnan(waiting.sum));  // nobody came last
  CHECK(!waiting.right());
  checks::context = "threads that do not arrive";
  const pid_t child = fork();
  if (child == 0) {
    close(STDERR_FILENO);
    Grid(4).run(0, kThreads - 1);
    _exit(0);
  }
  int ended = 0;
  CHECK(waitpid(child, &ended, 0) == child);
  CHECK(WIFSIGNALED(ended) && WTERMSIG(ended) == SIGABRT);
  checks::context.clear();
}

}  // namespace

int main() {
  the_last_one_sees_all();
  broken_terms_show();
  return checks::finish();
}
