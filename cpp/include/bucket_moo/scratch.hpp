// Hands out pieces of the caller's scratch memory, front to back. Nothing in the core allocates.
#ifndef BUCKET_MOO_SCRATCH_HPP
#define BUCKET_MOO_SCRATCH_HPP

#include <bucket_moo/config.hpp>
#include <cstddef>

namespace bucket_moo {

/// A cursor into caller-owned doubles. Copies are independent: what a callee takes is free again when it returns.
class Scratch {
 public:
  BUCKET_MOO_HD constexpr explicit Scratch(double* begin) : next_(begin) {}

  BUCKET_MOO_HD double* doubles(int count) {
    double* const piece = next_;
    next_ += count;
    return piece;
  }
  BUCKET_MOO_HD int* ints(int count) { return reinterpret_cast<int*>(doubles((count + 1) / 2)); }
  BUCKET_MOO_HD unsigned char* bytes(int count) { return reinterpret_cast<unsigned char*>(doubles((count + 7) / 8)); }

 private:
  double* next_;
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_SCRATCH_HPP
