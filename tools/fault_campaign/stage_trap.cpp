// Does a fault to this process where a reduction enters a stage.
//
// The stages are the ranges that torch's profiler shows of a reduction on the CPU (docs/profiling.md): torch calls
// back wherever one begins. So nothing of this is in the library.
#include <ATen/record_function.h>
#include <dirent.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

enum class Fault { kill = 1, stop, disconnect };

const std::string kOurs = "bucket_moo ";

struct Trap {
  std::mutex mutex;
  std::map<std::string, int> counts;
  std::string last = "none";
  std::string stage;  // empty: not armed
  int countdown = 0;
  Fault fault = Fault::kill;
  int delay = 0;  // microseconds
  int pipe = -1;
};

Trap& trap() {
  static Trap* const instance = new Trap;  // threads may outlive what is static
  return *instance;
}

// Ranges of this thread that have begun and not ended, by the profiler's names.
thread_local std::vector<std::string> open_ranges;

std::string stage_of(const std::string& range) {
  static const std::map<std::string, std::string> names = {
      {"step", "record"},
      {"pass", "record"},
      {"all_to_all", "all-to-all"},
      {"exchange", "Gramian exchange"},
      {"all_gather", "all-gather"},
      {"all_reduce", "weighted sum"},
      {"end_of_pass", "end of pass"},
      {"reduce_scatter", "weighted sum"},
  };
  const bool in_bucket = !open_ranges.empty() && open_ranges.front().rfind("bucket", 0) == 0;
  if (range.rfind("bucket", 0) == 0) {
    return "bucket";
  }
  if (range == "sketch" && in_bucket && open_ranges.back() != open_ranges.front()) {
    return "sketch ahead";  // in the sum of the bucket before
  }
  const auto found = names.find(range);
  const std::string name = found == names.end() ? range : found->second;
  return in_bucket || name == "end of pass" ? name : "late " + name;
}

void cut_connections() {
  DIR* const folder = opendir("/proc/self/fd");
  while (const dirent* const entry = readdir(folder)) {
    const int descriptor = std::atoi(entry->d_name);
    sockaddr_storage peer = {};
    socklen_t size = sizeof(peer);
    if (getpeername(descriptor, reinterpret_cast<sockaddr*>(&peer), &size) == 0 &&
        (peer.ss_family == AF_INET || peer.ss_family == AF_INET6)) {
      shutdown(descriptor, SHUT_RDWR);
    }
  }
  closedir(folder);
}

void tell(int pipe, const std::string& stage) {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  const std::string line = "{\"event\": \"fault\", \"stage\": \"" + stage +
                           "\", \"time\": " + std::to_string(now.tv_sec) + "." +
                           std::to_string(1000000000 + now.tv_nsec).substr(1) + "}\n";
  if (write(pipe, line.data(), line.size()) < 0) {
    std::abort();
  }
}

void strike(Fault fault, int pipe) {
  std::string last;
  {
    const std::lock_guard lock(trap().mutex);
    last = trap().last;
  }
  tell(pipe, last);
  switch (fault) {
    case Fault::kill:
      kill(getpid(), SIGKILL);
      break;
    case Fault::stop:
      kill(getpid(), SIGSTOP);
      break;
    case Fault::disconnect:
      cut_connections();
      break;
  }
}

void enter(const std::string& stage) {
  Trap& all = trap();
  std::unique_lock lock(all.mutex);
  all.last = stage;
  ++all.counts[stage];
  if (all.stage != stage || --all.countdown > 0) {
    return;
  }
  all.stage.clear();
  const auto [fault, delay, pipe] = std::tuple(all.fault, all.delay, all.pipe);
  lock.unlock();
  if (delay == 0) {
    strike(fault, pipe);
  } else {  // somewhere in what follows, while this thread goes on
    std::thread([fault, delay, pipe] {
      std::this_thread::sleep_for(std::chrono::microseconds(delay));
      strike(fault, pipe);
    }).detach();
  }
}

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
  const std::string name = function.name();
  if (name == "c10d::broadcast_") {  // what DDP compares its new buckets by
    enter("rebuild");
  } else if (name.rfind(kOurs, 0) == 0) {
    const std::string range = name.substr(kOurs.size());
    enter(stage_of(range));
    open_ranges.push_back(range);
  }
  return nullptr;
}

void end(const at::RecordFunction& function, at::ObserverContext*) {
  if (std::string(function.name()).rfind(kOurs, 0) == 0 && !open_ranges.empty()) {
    open_ranges.pop_back();
  }
}

void copy_out(const std::string& text, char* out, int size) {
  std::strncpy(out, text.c_str(), static_cast<std::size_t>(size) - 1);
  out[size - 1] = '\0';
}

}  // namespace

extern "C" {

/// Watches all threads from now on, and counts stages from here.
void stage_trap_watch() {
  at::addGlobalCallback(
      at::RecordFunctionCallback(&begin, &end).scopes({at::RecordScope::FUNCTION, at::RecordScope::USER_SCOPE}));
}

/// Strikes `delay` microseconds after the stage is entered for the `occurrence`th time from now on, and then writes
/// which stage was entered last, and when, to `pipe`.
void stage_trap_arm(const char* stage, int occurrence, int fault, int delay, int pipe) {
  const std::lock_guard lock(trap().mutex);
  trap().stage = stage;
  trap().countdown = occurrence;
  trap().fault = static_cast<Fault>(fault);
  trap().delay = delay;
  trap().pipe = pipe;
}

/// The stage that was entered last.
void stage_trap_last(char* out, int size) {
  const std::lock_guard lock(trap().mutex);
  copy_out(trap().last, out, size);
}

/// A line "stage: count" for every stage.
void stage_trap_counts(char* out, int size) {
  const std::lock_guard lock(trap().mutex);
  std::string text;
  for (const auto& [stage, count] : trap().counts) {
    text += stage + ": " + std::to_string(count) + "\n";
  }
  copy_out(text, out, size);
}

}  // extern "C"
