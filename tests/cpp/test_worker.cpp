// The worker thread: order of jobs, stopping with jobs in the queue, from jobs, and while others submit.
//
// Its queue and its end are what threads share there; preset `tsan` looks for races.
#include <atomic>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "engine/worker.hpp"

namespace {

int failures = 0;

void check(bool is_right, const char* what) {
  if (!is_right) {
    std::printf("FAILED: %s\n", what);
    ++failures;
  }
}

void test_order() {
  std::vector<int> done;
  {
    bucket_moo::Worker worker;
    for (int i = 0; i < 1000; ++i) check(worker.submit([&done, i] { done.push_back(i); }), "a job is taken");
    check(!worker.is_this_thread(), "the caller is not the worker");
  }  // runs what is queued
  check(done.size() == 1000, "all jobs ran");
  for (std::size_t i = 0; i < done.size(); ++i) check(done[i] == static_cast<int>(i), "in their order");
}

void test_several_callers_and_a_stop_between() {
  for (int round = 0; round < 50; ++round) {
    bucket_moo::Worker worker;
    std::atomic<int> taken = 0;
    std::atomic<int> ran = 0;
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; ++caller) {
      callers.emplace_back([&] {
        for (int i = 0; i < 100; ++i) taken += worker.submit([&ran] { ++ran; }) ? 1 : 0;
      });
    }
    std::thread stopper([&worker] { worker.stop(); });
    for (std::thread& caller : callers) caller.join();
    stopper.join();
    worker.stop();
    check(taken == ran, "what was taken ran, and nothing else");
    check(!worker.submit([] {}), "no job is taken after the end");
  }
}

/// As when a Future's callback drops the last reference to a state.
void test_the_last_reference_in_a_job() {
  for (int round = 0; round < 50; ++round) {
    auto worker = std::make_shared<bucket_moo::Worker>();
    std::atomic<bool> was_worker = false;
    std::atomic<bool> is_over = false;
    std::atomic<bool> is_alone = false;
    check(worker->submit([own = worker, &was_worker, &is_over, &is_alone]() mutable {
      while (!is_alone) std::this_thread::yield();
      was_worker = own->is_this_thread();
      own.reset();
      is_over = true;
    }),
          "a job is taken");
    worker.reset();
    is_alone = true;
    while (!is_over) std::this_thread::yield();
    check(was_worker, "a job runs on the worker's thread");
  }
}

}  // namespace

int main() {
  test_order();
  test_several_callers_and_a_stop_between();
  test_the_last_reference_in_a_job();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
