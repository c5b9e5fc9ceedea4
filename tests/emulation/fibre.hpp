// Switching between call stacks.
#ifndef BUCKET_MOO_EMULATION_FIBRE_HPP
#define BUCKET_MOO_EMULATION_FIBRE_HPP

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace bucket_moo::emulation {

/// A call stack that can be left and gone on with. Not tied to an OS thread.
class Fibre {
 public:
  /// The caller's own stack, to come back to.
  Fibre() = default;
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  /// A new one on the given memory. \param entry must never return
  void start(void* stack, std::size_t bytes, void (*entry)());

  /// Leaves `from`, which is running, for this one.
  void resume(Fibre& from);

 private:
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_ = {};
#endif
};

}  // namespace bucket_moo::emulation

#endif  // BUCKET_MOO_EMULATION_FIBRE_HPP
