// Accesses of kernels at addresses that are no multiple of the type's size, which a GPU refuses and the CPU does not:
// kernels are compiled with -fsanitize=alignment, and this stands in for the sanitizer's runtime.
#include <cstdint>
#include <string>

#include "memory.hpp"

namespace {

/// What the compiler tells of an access.
struct Mismatch {
  const char* file;
  std::uint32_t line;
  std::uint32_t column;
  const struct {
    std::uint16_t kind;
    std::uint16_t info;
    char name[1];  // and on
  }* type;
  unsigned char log_alignment;
  unsigned char access;
};

}  // namespace

/// Weak, for a program that has the sanitizer's runtime as well.
extern "C" __attribute__((weak)) void __ubsan_handle_type_mismatch_v1(const Mismatch* mismatch,
                                                                      std::uintptr_t address) {
  bucket_moo::emulation::fault(std::string(mismatch->file) + ":" + std::to_string(mismatch->line) + " uses " +
                               mismatch->type->name + " at an address " +
                               std::to_string(address % (std::uintptr_t{1} << mismatch->log_alignment)) +
                               " bytes past its alignment");
}
