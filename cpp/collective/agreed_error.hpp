// Errors that every rank of a group raises alike.
#pragma once

#include <c10/util/Exception.h>

#include <source_location>
#include <string>
#include <utility>

namespace bucket_moo {

/// A ValueError that every rank raises in the same call, because each found it in data that all ranks had exchanged.
/// Ranks are still in step after it, so a state may go on. Any other error is one rank's own: the others went on
/// without it, and the state is spent.
class AgreedError : public c10::ValueError {
 public:
  explicit AgreedError(std::string message, std::source_location where = std::source_location::current())
      : c10::ValueError({where.function_name(), where.file_name(), where.line()}, std::move(message)) {}
};

}  // namespace bucket_moo
