// The error of a step on its way to a host that does not wait.
#include <cuda_runtime.h>

#include <bucket_moo/objective_table.hpp>
#include <new>
#include <optional>
#include <vector>

#include "checks.hpp"
#include "emulation.hpp"
#include "gramian.cuh"
#include "step.cuh"

namespace {

namespace emulation = bucket_moo::emulation;
using bucket_moo::StepError;
using bucket_moo::StepHeader;
using bucket_moo::StepRecord;
using bucket_moo::cuda::StepNotice;

/// A table of `world` ranks and what the kernel needs around it.
struct Table {
  explicit Table(int world)
      : leader(static_cast<std::size_t>(world)),
        objective(leader),
        begin(static_cast<std::size_t>(world) + 1),
        member(leader),
        share(static_cast<std::size_t>(world)) {}

  bucket_moo::ObjectiveTable pointers() {
    return {&header, leader.data(), objective.data(), share.data(), begin.data(), member.data()};
  }

  StepHeader header;
  std::vector<int> leader, objective, begin, member;
  std::vector<double> share;
};

void an_error_arrives_behind_the_rest() {
  constexpr int kWorld = 3;
  std::vector<StepRecord> records(kWorld);
  for (int r = 0; r < kWorld; ++r) {
    records[static_cast<std::size_t>(r)].objective.text()[0] = static_cast<char>('a' + r);
  }
  Table table(kWorld);
  StepHeader failed;
  std::vector<unsigned> tickets(bucket_moo::cuda::kGramianTickets, 7u);  // as a step that went wrong may leave them
  void* memory = nullptr;
  CHECK(cudaHostAlloc(&memory, sizeof(StepNotice), cudaHostAllocMapped) == cudaSuccess);
  auto* const told = new (memory) StepNotice;
  std::optional<StepNotice> at_fence;
  emulation::on_system_fence([&] { at_fence = *told; });

  const auto step = [&](std::int64_t number, int most) {
    for (StepRecord& record : records) record.step = number;
    CHECK(bucket_moo::cuda::launch_make_table(records.data(), kWorld, {.objectives = most, .expected = 0},
                                              table.pointers(), {}, {}, tickets.data(), {&failed, told, number + 10},
                                              nullptr) == cudaSuccess);
  };
  step(1, 3);
  CHECK(tickets == std::vector<unsigned>(tickets.size(), 0u));
  CHECK(told->header.error == StepError::none);
  CHECK(!at_fence);
  step(2, 2);
  CHECK(at_fence && at_fence->header.error == StepError::none);
  for (const StepNotice& notice : {*at_fence, *told}) {
    CHECK(notice.header.culprit == 3);
    CHECK(notice.header.step == 2);
    CHECK(notice.begun == 12);
  }
  CHECK(told->header.error == StepError::too_many_objectives);
  at_fence.reset();
  step(3, 2);  // the first one stays
  CHECK(!at_fence);
  CHECK(told->header.step == 2);
  CHECK(told->begun == 12);
  emulation::on_system_fence({});
  CHECK(emulation::take_faults().empty());
  CHECK(cudaFreeHost(memory) == cudaSuccess);
}

}  // namespace

int main() {
  emulation::collect_faults(true);
  an_error_arrives_behind_the_rest();
  return checks::finish();
}
