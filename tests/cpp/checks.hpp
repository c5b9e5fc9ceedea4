// Counts checks; a test's main() returns finish().
#ifndef BUCKET_MOO_TESTS_CHECKS_HPP
#define BUCKET_MOO_TESTS_CHECKS_HPP

#include <cstdio>
#include <string>

namespace checks {

inline long done = 0;
inline int failed = 0;
inline std::string context;  ///< what is being tested, for messages

inline void check(bool ok, const char* what, int line) {
  ++done;
  if (ok) return;
  if (++failed <= 40) std::printf("FAILED line %d: %s [%s]\n", line, what, context.c_str());
}

inline int finish() {
  std::printf("%ld checks, %d failed\n", done, failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace checks

#define CHECK(condition) checks::check((condition), #condition, __LINE__)

#endif  // BUCKET_MOO_TESTS_CHECKS_HPP
