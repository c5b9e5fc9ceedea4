#include "engine/step_totals.hpp"

#include <c10/util/StringUtil.h>

#include <algorithm>

#include "bucket_moo/pass_table.hpp"
#include "collective/agreed_error.hpp"

namespace bucket_moo {
namespace {

std::string list(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) {
    text += (text.empty() ? "'" : ", '") + name + "'";
  }
  return text;
}

}  // namespace

void check_totals(const ObjectiveTotals& totals, const StepObjectives& objectives, const PlacedReduction& call,
                  int ranks) {
  const std::vector<std::string> expected = names_of(totals);
  const std::vector<std::string>& names = objectives.names();
  const std::string where = c10::str("bucket_moo_ext: accumulate(totals=...) of step ", call.step);
  for (const std::string& name : names) {
    if (std::find(expected.begin(), expected.end(), name) == expected.end()) {
      throw AgreedError(c10::str(where, " has no objective '", name, "', which pass ", call.pass + 1, " has; it has ",
                                 list(expected)));
    }
  }
  if (call.leaves_open) {
    return;
  }
  for (const std::string& name : expected) {
    const double total = total_of(totals, name);
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) {
      throw AgreedError(c10::str(where, " has objective '", name, "', of which the step has no row"));
    }
    const double weight = ranks * objectives.weight(static_cast<std::size_t>(found - names.begin()));
    if (!adds_up(weight, total)) {
      throw AgreedError(c10::str(where, " says that the weights of objective '", name, "' add up to ", total,
                                 " over all ranks and passes; they add up to ", weight));
    }
  }
}

std::vector<std::string> names_of(const ObjectiveTotals& totals) {
  std::vector<std::string> names;
  for (const ObjectiveTotal& total : totals) {
    names.emplace_back(total.objective.text());
  }
  return names;
}

double total_of(const ObjectiveTotals& totals, const std::string& objective) {
  const auto found = std::find_if(totals.begin(), totals.end(),
                                  [&](const ObjectiveTotal& total) { return objective == total.objective.text(); });
  return found == totals.end() ? 0.0 : found->total;
}

}  // namespace bucket_moo
