// Errors that every rank of a group raises alike.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace bucket_moo {

/// A bad call that every rank finds in the same call, because each found it in data that all ranks had exchanged.
/// Ranks are still in step after it, so a state may go on. Any other error is one rank's own: the others went on
/// without it, and the state is spent.
class AgreedError : public std::invalid_argument {
 public:
  explicit AgreedError(const std::string& message, std::source_location where = std::source_location::current())
      : std::invalid_argument(message), where_(where) {}

  /// Where it was found.
  const std::source_location& where() const { return where_; }

 private:
  std::source_location where_;
};

}  // namespace bucket_moo
