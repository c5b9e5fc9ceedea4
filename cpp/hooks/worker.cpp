#include "hooks/worker.hpp"

#include <utility>

#ifdef __linux__
#include <pthread.h>
#endif

namespace bucket_moo {

Worker::~Worker() { stop(); }

bool Worker::submit(std::function<void()> job) {
  const std::lock_guard lock(mutex_);
  if (stopping_) {
    return false;
  }
  if (!thread_.joinable()) {
    thread_ = std::thread([this] { run(); });
  }
  jobs_.push_back(std::move(job));
  wake_.notify_one();
  return true;
}

void Worker::stop() {
  std::thread finished;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    std::swap(finished, thread_);
    wake_.notify_one();
  }
  if (finished.joinable()) {
    finished.join();
  }
}

void Worker::run() {
#ifdef __linux__
  pthread_setname_np(pthread_self(), "bucket_moo");
#endif
  for (;;) {
    std::function<void()> job;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (jobs_.empty()) {
        return;
      }
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
  }
}

}  // namespace bucket_moo
