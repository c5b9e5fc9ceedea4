// What test_core checks, one file a question.
#ifndef BUCKET_MOO_TESTS_CORE_CHECKS_HPP
#define BUCKET_MOO_TESTS_CORE_CHECKS_HPP

#include <bucket_moo/solve.hpp>
#include <string>

#include "fixtures.hpp"

namespace core_checks {

using namespace fixtures;

inline bucket_moo::Method mgda() { return {.id = MethodId::mgda}; }

inline bucket_moo::Method cagrad(double c, bool rescale = false) {
  return {.id = MethodId::cagrad, .cagrad = {.c = c, .rescale = rescale}};
}

// Certificates, invariants and references on one Gramian of a family, whose weights are comparable if `unique`.

void check_mgda(const std::string& family, const Gramian& g, bool unique, Random& random, Worst& worst);
void check_cagrad(const std::string& family, const Gramian& g, double c, bool unique, Random& random, Worst& worst);
void check_pcgrad(const std::string& family, const Gramian& g, Random& random, Worst& worst);

/// What every solve promises: statuses, inactive objectives, extreme scales, garbage; closed forms.
void check_contract();

/// Permutations are drawn evenly, over every part of the key.
void check_permutations(Worst& worst);

/// The sketch's widths, flips and signs.
void check_sketch_map();

}  // namespace core_checks

#endif  // BUCKET_MOO_TESTS_CORE_CHECKS_HPP
