// What the rows of a step's objectives are to add up to, where it is known beforehand.
#pragma once

#include <string>
#include <vector>

#include "collective/step_objectives.hpp"
#include "engine/reduction.hpp"

namespace bucket_moo {

/// Raises AgreedError for an objective that has no total, and, where `call` closes the step, for one whose rows do not
/// add up to its total. `ranks`: whose mean a row of `objectives` is.
void check_totals(const ObjectiveTotals& totals, const StepObjectives& objectives, const PlacedReduction& call,
                  int ranks);

std::vector<std::string> names_of(const ObjectiveTotals& totals);

/// The total of an objective that has one.
double total_of(const ObjectiveTotals& totals, const std::string& objective);

}  // namespace bucket_moo
