// One thread that runs jobs first-in first-out.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace bucket_moo {

/// Runs jobs one after another in the order they were given, on one thread of its own that starts with the first job.
/// Collectives issued from jobs are therefore in the same order on every rank, and the caller goes on meanwhile.
class Worker {
 public:
  Worker() = default;
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  /// Queues a job, which must not throw. Returns false, without queueing it, once stop() was called.
  bool submit(std::function<void()> job);

  /// Takes no more jobs, runs those queued, and waits for the last one. Not to be called from a job.
  void stop();

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace bucket_moo
