// Errors that every rank of a group raises alike.
#pragma once

#include <stdexcept>

namespace bucket_moo {

/// A bad call that every rank finds in the same call, because each found it in data that all ranks had exchanged.
/// Ranks are still in step after it, so a state may go on. Any other error is one rank's own: the others went on
/// without it, and the state is spent.
class AgreedError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

}  // namespace bucket_moo
