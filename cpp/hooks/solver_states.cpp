#include "hooks/solver_states.hpp"

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

std::size_t SolverStates::size(std::size_t k) const { return state_size(method_, static_cast<int>(k)); }

std::vector<double> SolverStates::load(const std::vector<BucketParameter>& parameters,
                                       const std::vector<std::string>& objectives) {
  State& state = state_of(parameters);
  const std::vector<int> place = places(state, objectives);
  std::vector<double> values(size(objectives.size()));
  copy(state.values, place, values, first(objectives.size()));
  return values;
}

void SolverStates::store(const std::vector<BucketParameter>& parameters, const std::vector<std::string>& objectives,
                         const std::vector<double>& values) {
  State& state = state_of(parameters);
  const std::vector<int> place = places(state, objectives);
  copy(values, first(objectives.size()), state.values, place);
}

std::vector<SavedSolverState> SolverStates::save() const {
  std::vector<SavedSolverState> saved;
  for (const auto& [labels, state] : owners_.buckets()) {
    saved.push_back({labels, state->objectives, state->values});
  }
  return saved;
}

void check_saved(const Method& method, const SavedSolverState& saved) {
  const std::set<std::string> distinct(saved.objectives.begin(), saved.objectives.end());
  TORCH_CHECK_VALUE(distinct.size() == saved.objectives.size(),
                    "bucket_moo_ext: a saved bucket names an objective twice");
  const std::size_t size = state_size(method, static_cast<int>(saved.objectives.size()));
  TORCH_CHECK_VALUE(saved.values.size() == size, "bucket_moo_ext: a saved bucket of ", saved.objectives.size(),
                    " objectives must hold ", size, " values; got ", saved.values.size());
}

void check_distinct(const std::string* label) {
  TORCH_CHECK_VALUE(label == nullptr, "bucket_moo_ext: parameter '", *label, "' is in two saved buckets");
}

void SolverStates::restore(const std::vector<SavedSolverState>& saved) {
  ParameterOwners<State> owners;
  for (const SavedSolverState& bucket : saved) {
    check_saved(method_, bucket);
    check_distinct(owners.add(bucket.parameters, {bucket.objectives, bucket.values}));
  }
  owners_ = std::move(owners);
}

SolverStates::State& SolverStates::state_of(const std::vector<BucketParameter>& parameters) {
  return owners_.find(parameters, [](const State* from) { return from == nullptr ? State{} : *from; });
}

/// Where each objective lies in the state, which is extended by those it lacks.
std::vector<int> SolverStates::places(State& state, const std::vector<std::string>& objectives) const {
  std::vector<std::string> names = state.objectives;
  std::vector<int> place;
  for (const std::string& objective : objectives) {
    const auto found = std::find(names.begin(), names.end(), objective);
    place.push_back(static_cast<int>(found - names.begin()));
    if (found == names.end()) {
      names.push_back(objective);
    }
  }
  if (names.size() > state.objectives.size()) {
    const std::vector<int> known = first(state.objectives.size());
    std::vector<double> values(size(names.size()));
    copy(state.values, known, values, known);
    state.values = std::move(values);
    state.objectives = std::move(names);
  }
  return place;
}

/// Copies the state of some objectives, at from_place in `from`, to to_place in `to`.
void SolverStates::copy(const std::vector<double>& from, const std::vector<int>& from_place, std::vector<double>& to,
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
