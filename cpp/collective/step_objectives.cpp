#include "collective/step_objectives.hpp"

#include <c10/util/StringUtil.h>

#include <algorithm>

#include "bucket_moo/limits.hpp"
#include "collective/agreed_error.hpp"

namespace bucket_moo {
namespace {

/// A weight so many times larger than its objective's unit becomes the unit.
constexpr double kNewUnit = 0x1p40;

}  // namespace

void StepObjectives::add_pass(std::span<const StepRecord> records) {
  PassRows pass;
  for (const StepRecord& record : records) {
    const std::size_t k = number_of(record.objective);
    pass.objective.push_back(static_cast<int>(k));
    ++rows_[k];
    double& unit = unit_[k];
    if (record.weight > 0.0 && (unit == 0.0 || record.weight > kNewUnit * unit)) {
      total_[k] *= unit / record.weight;
      unit = record.weight;
    }
  }
  for (std::size_t r = 0; r < records.size(); ++r) {
    const auto k = static_cast<std::size_t>(pass.objective[r]);
    const double weight = unit_[k] > 0.0 ? records[r].weight / unit_[k] : 0.0;
    pass.coefficient.push_back(weight >= kSmallestShare ? weight : 0.0);
    total_[k] += pass.coefficient.back();
  }
  pass.unit = unit_;
  passes_.push_back(std::move(pass));
}

double StepObjectives::share(std::size_t k, double unit) const {
  const double share = total_[k] > 0.0 ? unit / unit_[k] / total_[k] : 0.0;
  return share >= kSmallestShare ? share : 0.0;
}

std::size_t StepObjectives::number_of(const ObjectiveName& name) {
  const auto found = std::find(names_.begin(), names_.end(), name.text());
  if (found != names_.end()) {
    return static_cast<std::size_t>(found - names_.begin());
  }
  if (names_.size() == static_cast<std::size_t>(kMaxObjectives)) {
    throw AgreedError(c10::str("bucket_moo_ext: at most ", kMaxObjectives, " objectives are supported in all passes ",
                               "of a step; let several rows share an objective (objective=...)"));
  }
  names_.emplace_back(name.text());
  rows_.push_back(0);
  unit_.push_back(0.0);
  total_.push_back(0.0);
  return names_.size() - 1;
}

}  // namespace bucket_moo
