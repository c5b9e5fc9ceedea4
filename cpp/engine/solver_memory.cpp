#include "engine/solver_memory.hpp"

#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "bucket_moo/lanes.hpp"
#include "bucket_moo/state_layout.hpp"

namespace bucket_moo {
namespace {

std::vector<int> first(std::size_t count) {
  std::vector<int> places(count);
  std::iota(places.begin(), places.end(), 0);
  return places;
}

}  // namespace

bool has_memory(const Method& method) { return state_size(method, 1) > 0; }

void check_saved(const Method& method, const SavedSolverState& saved) {
  const std::set<std::string> distinct(saved.objectives.begin(), saved.objectives.end());
  TORCH_CHECK_VALUE(distinct.size() == saved.objectives.size(),
                    "bucket_moo_ext: a saved bucket names an objective twice");
  const std::size_t size = state_size(method, static_cast<int>(saved.objectives.size()));
  TORCH_CHECK_VALUE(saved.values.size() == size, "bucket_moo_ext: a saved bucket of ", saved.objectives.size(),
                    " objectives must hold ", size, " values; got ", saved.values.size());
}

void check_distinct(const std::string* name) {
  TORCH_CHECK_VALUE(name == nullptr, "bucket_moo_ext: parameter '", *name, "' is in two saved buckets");
}

std::vector<double> SolverMemory::load(const std::vector<std::string>& objectives) {
  const std::vector<int> place = places(objectives);
  std::vector<double> values(state_size(method_, static_cast<int>(objectives.size())));
  copy(values_, place, values, first(objectives.size()));
  return values;
}

void SolverMemory::store(const std::vector<std::string>& objectives, const std::vector<double>& values) {
  const std::vector<int> place = places(objectives);
  copy(values, first(objectives.size()), values_, place);
}

/// Where each objective lies in the memory, which is extended by those it lacks.
std::vector<int> SolverMemory::places(const std::vector<std::string>& objectives) {
  std::vector<std::string> names = objectives_;
  std::vector<int> place;
  for (const std::string& objective : objectives) {
    const auto found = std::find(names.begin(), names.end(), objective);
    place.push_back(static_cast<int>(found - names.begin()));
    if (found == names.end()) {
      names.push_back(objective);
    }
  }
  if (names.size() > objectives_.size()) {
    const std::vector<int> known = first(objectives_.size());
    std::vector<double> values(state_size(method_, static_cast<int>(names.size())));
    copy(values_, known, values, known);
    values_ = std::move(values);
    objectives_ = std::move(names);
  }
  return place;
}

/// Copies the state of some objectives, at from_place in `from`, to to_place in `to`.
void SolverMemory::copy(const std::vector<double>& from, const std::vector<int>& from_place, std::vector<double>& to,
                        const std::vector<int>& to_place) const {
  const auto side = [this](const std::vector<double>& values) {  // the number of objectives of a state of this size
    int k = 0;
    while (state_size(method_, k) < values.size()) {
      ++k;
    }
    return k;
  };
  copy_state(HostLanes{}, method_, static_cast<int>(from_place.size()), {from.data(), side(from), from_place.data()},
             {to.data(), side(to), to_place.data()});
}

}  // namespace bucket_moo
