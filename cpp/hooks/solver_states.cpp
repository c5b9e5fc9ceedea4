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

std::vector<double> SolverStates::load(const std::vector<Parameter>& parameters,
                                       const std::vector<std::string>& objectives) {
  State& state = *state_of(parameters);
  const std::vector<int> place = places(state, objectives);
  std::vector<double> values(size(objectives.size()));
  copy(state.values, place, values, first(objectives.size()));
  return values;
}

void SolverStates::store(const std::vector<Parameter>& parameters, const std::vector<std::string>& objectives,
                         const std::vector<double>& values) {
  State& state = *state_of(parameters);
  const std::vector<int> place = places(state, objectives);
  copy(values, first(objectives.size()), state.values, place);
}

std::vector<SavedSolverState> SolverStates::save() const {
  std::vector<SavedSolverState> saved;
  std::map<const State*, std::size_t> place;
  for (const auto& [label, state] : owner_) {
    const auto [found, fresh] = place.emplace(state.get(), saved.size());
    if (fresh) {
      saved.push_back({{}, state->objectives, state->values});
    }
    saved[found->second].parameters.push_back(label);
  }
  return saved;
}

void SolverStates::restore(const std::vector<SavedSolverState>& saved) {
  std::map<std::string, StatePtr> owner;
  for (const SavedSolverState& bucket : saved) {
    const std::set<std::string> distinct(bucket.objectives.begin(), bucket.objectives.end());
    TORCH_CHECK_VALUE(distinct.size() == bucket.objectives.size(),
                      "bucket_moo_ext: a saved bucket names an objective twice");
    TORCH_CHECK_VALUE(bucket.values.size() == size(bucket.objectives.size()), "bucket_moo_ext: a saved bucket of ",
                      bucket.objectives.size(), " objectives must hold ", size(bucket.objectives.size()),
                      " values; got ", bucket.values.size());
    const auto state = std::make_shared<State>(State{bucket.objectives, bucket.values, bucket.parameters.size()});
    for (const std::string& label : bucket.parameters) {
      TORCH_CHECK_VALUE(owner.emplace(label, state).second, "bucket_moo_ext: parameter '", label,
                        "' is in two saved buckets");
    }
  }
  owner_ = std::move(owner);
}

/// The state that exactly these parameters belong to, made if there is none.
SolverStates::StatePtr SolverStates::state_of(const std::vector<Parameter>& parameters) {
  const auto found = owner_.find(parameters.at(0).label);
  if (found != owner_.end() && found->second->parameters == parameters.size() &&
      std::all_of(parameters.begin(), parameters.end(), [&](const Parameter& parameter) {
        const auto other = owner_.find(parameter.label);
        return other != owner_.end() && other->second == found->second;
      })) {
    return found->second;
  }
  const StatePtr made = successor(parameters);
  for (const Parameter& parameter : parameters) {
    StatePtr& owner = owner_[parameter.label];
    if (owner) {
      --owner->parameters;
    }
    owner = made;
    ++made->parameters;
  }
  return made;
}

/// A copy of the state that most elements of these parameters belong to.
SolverStates::StatePtr SolverStates::successor(const std::vector<Parameter>& parameters) const {
  std::map<const State*, std::int64_t> elements;
  for (const Parameter& parameter : parameters) {
    if (const auto found = owner_.find(parameter.label); found != owner_.end()) {
      elements[found->second.get()] += parameter.numel;
    }
  }
  const State* best = nullptr;
  for (const Parameter& parameter : parameters) {  // not in the order of `elements`, which is that of addresses
    const auto found = owner_.find(parameter.label);
    if (found != owner_.end() && (best == nullptr || elements[found->second.get()] > elements[best])) {
      best = found->second.get();
    }
  }
  const auto made = std::make_shared<State>(best == nullptr ? State{} : *best);
  made->parameters = 0;
  return made;
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
