// The stages of a reduction, for whatever profiler there is.
#pragma once

namespace bucket_moo {

/// What is called at the beginning and the end of a stage, from the thread that is in it. `end` gets what `begin`
/// returned, unless that is null. Neither throws.
struct Profiler {
  void* (*begin)(const char* stage) noexcept;
  void (*end)(void* scope) noexcept;
};

/// From now on stages are shown to this one, which lives as long as the process; null: to none, as at first. May be
/// called from any thread.
void set_profiler(const Profiler* profiler) noexcept;

/// A stage, from here to the end of the block.
class ProfilerScope {
 public:
  /// `stage`: a string that lives as long as the scope
  explicit ProfilerScope(const char* stage) noexcept;
  ~ProfilerScope();
  ProfilerScope(const ProfilerScope&) = delete;
  ProfilerScope& operator=(const ProfilerScope&) = delete;

 private:
  const Profiler* const profiler_;
  void* const scope_;
};

}  // namespace bucket_moo
