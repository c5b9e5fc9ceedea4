// Between C and C++: errors become numbers here, and structs of any age are read and written.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

#include "c_api/bucket_moo.h"
#include "methods/message.hpp"

namespace bucket_moo::c_api {

/// The caller's transport returned an error.
class TransportFailed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Returns the number of the exception that is being handled, and keeps what it says for bucket_moo_last_error().
int keep_current_error() noexcept;

/// Returns `error` and keeps this text.
int keep_error(int error, const char* text) noexcept;

/// Calls the function. Returns BUCKET_MOO_OK or the number of what it throws.
template <class Function>
int guarded(const Function& function) noexcept {
  try {
    function();
    return BUCKET_MOO_OK;
  } catch (...) {
    return keep_current_error();
  }
}

inline constexpr Require require{"bucket_moo: "};

/// What the caller has set of a struct; the rest, and all of it for null, is zero. What is set of a larger struct than
/// ours must be zero too: we do not know what it asks for.
template <class Struct>
Struct read_struct(const Struct* given, const char* name) {
  Struct known{};
  if (given == nullptr) return known;
  const std::size_t size = given->struct_size;
  require(size >= sizeof(size), name, ".struct_size must be sizeof(struct ", name, "); got ", size);
  std::memcpy(&known, given, std::min(size, sizeof(Struct)));
  const auto* const bytes = reinterpret_cast<const unsigned char*>(given);
  for (std::size_t i = sizeof(Struct); i < size; ++i) {
    require(bytes[i] == 0, "struct ", name, " has a field set that this library does not know; it is of version ",
            bucket_moo_version(), ", older than the header that was compiled with");
  }
  return known;
}

/// Writes as much of the values as the caller's struct has, but its size.
template <class Struct>
void write_struct(Struct* out, const Struct& values) noexcept {
  if (out == nullptr) return;
  const std::size_t size = std::min(out->struct_size, sizeof(Struct));
  const std::size_t begin = sizeof(out->struct_size);
  if (size > begin) {
    std::memcpy(reinterpret_cast<unsigned char*>(out) + begin, reinterpret_cast<const unsigned char*>(&values) + begin,
                size - begin);
  }
}

/// Before anything is done: whether write_struct() can.
template <class Struct>
void check_out_struct(const Struct* out, const char* name) {
  require(out == nullptr || out->struct_size >= sizeof(out->struct_size), name, ".struct_size must be sizeof(struct ",
          name, ")");
}

}  // namespace bucket_moo::c_api
