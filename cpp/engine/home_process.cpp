#include "engine/home_process.hpp"

#include <pthread.h>
#include <unistd.h>

#include <atomic>

namespace bucket_moo {
namespace {

/// Forks between the first process that made a HomeProcess and this one.
std::atomic<std::uint64_t> forks = 0;

std::uint64_t count_from_now_on() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { ++forks; });
  static_cast<void>(registered);  // fails for lack of memory alone
  return forks;
}

}  // namespace

HomeProcess::HomeProcess() : forks_(count_from_now_on()), pid_(getpid()) {}

bool HomeProcess::is_here() const { return forks_ == forks && pid_ == getpid(); }

}  // namespace bucket_moo
