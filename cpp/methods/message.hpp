// Texts of errors.
#pragma once

#include <sstream>
#include <string>

namespace bucket_moo {

/// The values, printed one after another.
template <class... Values>
std::string message(const Values&... values) {
  std::ostringstream text;
  static_cast<void>((text << ... << values));
  return text.str();
}

}  // namespace bucket_moo
