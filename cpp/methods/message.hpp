// Texts of errors.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace bucket_moo {

/// The values, printed one after another.
template <class... Values>
std::string message(const Values&... values) {
  std::ostringstream text;
  static_cast<void>((text << ... << values));
  return text.str();
}

/// Throws std::invalid_argument with the prefix and the values as its text, unless the condition holds.
struct Require {
  const char* prefix;

  template <class... Values>
  void operator()(bool condition, const Values&... values) const {
    if (!condition) throw std::invalid_argument(message(prefix, values...));
  }
};

}  // namespace bucket_moo
