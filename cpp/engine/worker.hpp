// One thread that runs jobs first-in first-out.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace bucket_moo {

/// Runs jobs one after another in the order they were given, on one thread of its own that starts with the first job.
/// Collectives issued from jobs are therefore in the same order on every rank, and the caller goes on meanwhile.
class Worker {
 public:
  Worker() = default;
  ~Worker() { stop(); }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  /// Queues a job, which must not throw. Returns false, without queueing it, once stop() was called.
  bool submit(std::function<void()> job);

  /// Takes no more jobs, runs those queued, and waits for the last one, except when called from a job.
  void stop();

  /// Whether the caller runs on the worker's thread, that is, in a job.
  bool is_this_thread() const;

 private:
  // Shared with the thread, which outlives the Worker when a job drops the last reference to its owner.
  struct Queue {
    std::mutex mutex;
    std::condition_variable wake;
    std::deque<std::function<void()>> jobs;
    bool stopping = false;
  };

  static void run(const std::shared_ptr<Queue>& queue);

  const std::shared_ptr<Queue> queue_ = std::make_shared<Queue>();
  std::thread thread_;  // guarded by queue_->mutex
};

}  // namespace bucket_moo
