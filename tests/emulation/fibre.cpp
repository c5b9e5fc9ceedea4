#include "fibre.hpp"

#include <cstdint>

namespace bucket_moo::emulation {

#if defined(__x86_64__)

// swapcontext() makes a system call each time; a kernel switches millions of times.
extern "C" void bucket_moo_emulation_switch(void** save, void* to);
asm(R"(
.text
.globl bucket_moo_emulation_switch
.hidden bucket_moo_emulation_switch
.type bucket_moo_emulation_switch, @function
bucket_moo_emulation_switch:
  endbr64
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size bucket_moo_emulation_switch, .-bucket_moo_emulation_switch
)");

void Fibre::start(void* stack, std::size_t bytes, void (*entry)()) {
  const std::uintptr_t top = (reinterpret_cast<std::uintptr_t>(stack) + bytes) & ~std::uintptr_t{15};
  void** const frame = reinterpret_cast<void**>(top);
  frame[-1] = nullptr;  // where a called function finds its return address
  frame[-2] = reinterpret_cast<void*>(entry);
  for (int saved = 3; saved <= 8; ++saved) frame[-saved] = nullptr;
  stack_pointer_ = frame - 8;
}

void Fibre::resume(Fibre& from) { bucket_moo_emulation_switch(&from.stack_pointer_, stack_pointer_); }

#else

void Fibre::start(void* stack, std::size_t bytes, void (*entry)()) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

void Fibre::resume(Fibre& from) { swapcontext(&from.context_, &context_); }

#endif

}  // namespace bucket_moo::emulation
