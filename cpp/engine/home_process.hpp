// Forked processes: where something was made, and whether that is here.
#pragma once

#include <sys/types.h>

#include <cstdint>

namespace bucket_moo {

/// The process that its owner was made in. fork() copies memory but no threads: in a child, locks may be held and
/// connections be used by threads that are not there, so what was made before must neither be used nor be destroyed.
/// Forks are counted, because process ids are used again; the id tells of forks that no handler hears of (clone()).
class HomeProcess {
 public:
  HomeProcess();

  /// False in a process that was forked from the one it was made in, at whatever remove.
  bool is_here() const;

  pid_t pid() const { return pid_; }

 private:
  const std::uint64_t forks_;
  const pid_t pid_;
};

}  // namespace bucket_moo
