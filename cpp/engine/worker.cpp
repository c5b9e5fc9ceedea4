#include "engine/worker.hpp"

#include <utility>

#ifdef __linux__
#include <pthread.h>
#endif

namespace bucket_moo {

bool Worker::submit(std::function<void()> job) {
  const std::lock_guard lock(queue_->mutex);
  if (queue_->stopping) {
    return false;
  }
  if (!thread_.joinable()) {
    thread_ = std::thread([queue = queue_] { run(queue); });
  }
  queue_->jobs.push_back(std::move(job));
  queue_->wake.notify_one();
  return true;
}

void Worker::stop() {
  std::thread finished;
  {
    const std::lock_guard lock(queue_->mutex);
    queue_->stopping = true;
    std::swap(finished, thread_);
    queue_->wake.notify_one();
  }
  if (!finished.joinable()) {
    return;
  }
  if (finished.get_id() == std::this_thread::get_id()) {
    finished.detach();  // a thread cannot wait for itself; it ends with its queue
  } else {
    finished.join();
  }
}

bool Worker::is_this_thread() const {
  const std::lock_guard lock(queue_->mutex);
  return thread_.get_id() == std::this_thread::get_id();
}

void Worker::run(const std::shared_ptr<Queue>& queue) {
#ifdef __linux__
  pthread_setname_np(pthread_self(), "bucket_moo");
#endif
  for (;;) {
    std::function<void()> job;
    {
      std::unique_lock lock(queue->mutex);
      queue->wake.wait(lock, [&] { return queue->stopping || !queue->jobs.empty(); });
      if (queue->jobs.empty()) {
        return;
      }
      job = std::move(queue->jobs.front());
      queue->jobs.pop_front();
    }
    job();
  }
}

}  // namespace bucket_moo
