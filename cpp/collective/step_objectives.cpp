#include "collective/step_objectives.hpp"

#include <utility>

#include "bucket_moo/lanes.hpp"
#include "collective/agreed_error.hpp"
#include "methods/message.hpp"

namespace bucket_moo {

void StepObjectives::add_pass(std::span<const StepRecord> records) {
  PassRows pass;
  pass.objective.resize(records.size());
  pass.coefficient.resize(records.size());
  pass.unit.resize(kMaxObjectives);
  bucket_moo::add_pass(HostLanes{}, records.data(), static_cast<int>(records.size()), {},
                       {&header_, record_.data(), unit_.data(), total_.data(), rows_.data()},
                       {pass.objective.data(), pass.coefficient.data(), pass.unit.data()});
  if (header_.error == StepError::too_many_objectives) {
    throw AgreedError(message("bucket_moo_ext: at most ", kMaxObjectives, " objectives are supported in all passes ",
                              "of a step; let several rows share an objective (objective=...)"));
  }
  const auto k = static_cast<std::size_t>(header_.k);
  while (names_.size() < k) {
    names_.emplace_back(record_[names_.size()].objective.text());
  }
  pass.unit.resize(k);
  passes_.push_back(std::move(pass));
}

double StepObjectives::share(std::size_t k, double unit) const { return mean_share(unit, unit_[k], total_[k]); }

std::vector<double> StepObjectives::squared_shares() const {
  std::vector<double> sums(names_.size());
  for (const PassRows& pass : passes_) {
    for (std::size_t r = 0; r < pass.objective.size(); ++r) {
      const auto k = static_cast<std::size_t>(pass.objective[r]);
      const double share = pass.coefficient[r] > 0.0 ? pass.coefficient[r] * this->share(k, pass.unit[k]) : 0.0;
      sums[k] += share * share;
    }
  }
  return sums;
}

}  // namespace bucket_moo
