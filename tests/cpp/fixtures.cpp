// The one fixture that compiles all methods.
#include "fixtures.hpp"

#include <bucket_moo/solve.hpp>
#include <cstring>
#include <limits>

namespace fixtures {

Answer solve(const bucket_moo::Method& method, const Gramian& g, RandomKey key, double* state) {
  // Exact sizes on the heap and a poisoned scratch: sanitizers see overruns, results show uninitialised reads.
  Answer answer{{}, Vector(static_cast<std::size_t>(g.k), -7.0)};
  Vector scratch(bucket_moo::solve_scratch_size(method.id, g.k), std::numeric_limits<double>::quiet_NaN());
  const Vector copy = g.entries;
  answer.solution = bucket_moo::solve(bucket_moo::HostLanes{}, method, key, g.k, copy.data(), answer.weights.data(),
                                      scratch.data(), state);
  check(std::memcmp(copy.data(), g.entries.data(), copy.size() * sizeof(double)) == 0, "Gramian is read only");
  return answer;
}

}  // namespace fixtures
