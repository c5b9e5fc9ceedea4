// In which order one objective meets the others: shared by the methods that go through pairs.
#ifndef BUCKET_MOO_ENCOUNTER_ORDER_HPP
#define BUCKET_MOO_ENCOUNTER_ORDER_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/problem.hpp>
#include <bucket_moo/random.hpp>

namespace bucket_moo {

/// Writes the active objectives other than `i` in the order in which i meets them. Runs in one lane.
///
/// The order is drawn over all objectives and then thinned out, so that it does not depend on which are active.
/// \param given [all, all] explicit orders, or nullptr: random, from problem.key and the objective. An entry that is no
///              objective is skipped, so that a bad row cannot reach outside
/// \param i     active place
/// \param order [all], out; the first entries count
/// \return how many
BUCKET_MOO_HD inline int load_encounter_order(const Problem& problem, const int* given, int i, unsigned char* order) {
  const int all = problem.all;
  const int objective = problem.objective[i];
  if (given == nullptr) permutation(problem.key, objective, all, order);
  int others = 0;
  for (int t = 0; t < all; ++t) {
    const int met = given == nullptr ? order[t] : given[objective * all + t];
    const int j = met >= 0 && met < all ? problem.slot[met] : -1;
    if (j >= 0 && j != i) order[others++] = static_cast<unsigned char>(j);
  }
  return others;
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_ENCOUNTER_ORDER_HPP
