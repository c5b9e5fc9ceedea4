// Bindings of the engine: direct calls of the collectives, records and saved states.
#include "engine/engine.hpp"

#include <c10/util/StringUtil.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.hpp"
#include "engine/make_backend.hpp"
#include "torch_types/dtype.hpp"

namespace bucket_moo {
namespace {

using torch::jit::PythonFutureWrapper;

/// What Python's Sketch says.
struct Sketch {
  SketchOptions options;
  SolveSchedule schedule;
};

using EnginePtr = std::shared_ptr<Engine>;
using GroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;

/// Ends the worker without the GIL: a Future's Python callback, run by the worker, may be waiting for it. In a forked
/// child there is no worker to end and nobody at the group's connections: there the engine stays where it is.
void delete_engine(Engine* engine) {
  if (!engine->is_at_home()) {
    return;
  }
  if (PyGILState_Check() != 0) {
    const py::gil_scoped_release no_gil;
    delete engine;
  } else {
    delete engine;
  }
}

/// From the ranks of every inside group.
RankGrid grid_of(const std::vector<std::vector<int>>& groups) {
  RankGrid grid;
  for (const std::vector<int>& group : groups) {
    grid.inside = static_cast<int>(group.size());
    grid.ranks.insert(grid.ranks.end(), group.begin(), group.end());
  }
  return grid;
}

Grouping new_grouping(const std::string& scope, std::map<std::string, std::string> groups, bool by_support,
                      bool keeps_mean_scale, bool has_pieces, const std::vector<std::string>& replicated) {
  static const std::map<std::string, Scope> scopes{
      {"bucket", Scope::bucket}, {"model", Scope::model}, {"parameter", Scope::parameter}, {"groups", Scope::groups}};
  return {scopes.at(scope), std::move(groups), by_support,
          keeps_mean_scale, has_pieces,        {replicated.begin(), replicated.end()}};
}

EnginePtr new_engine(std::optional<GroupPtr> group, const at::Device& device, const MethodConfig& method,
                     std::uint64_t seed, const std::optional<Sketch>& sketch, bool by_passes, bool row_norms,
                     Grouping grouping, const std::vector<std::vector<int>>& grid, std::optional<GroupPtr> across,
                     std::optional<GroupPtr> inside, std::optional<GroupPtr> pieces, Configuration configuration) {
  const py::gil_scoped_release no_gil;
  const auto [sketch_options, schedule] = sketch.value_or(Sketch());
  EngineOptions options{.method = method,
                        .seed = seed,
                        .sketch = sketch_options,
                        .schedule = schedule,
                        .layout = by_passes ? Layout::passes : Layout::ranks,
                        .takes_row_norms = row_norms,
                        .grouping = std::move(grouping),
                        .grid = grid_of(grid),
                        .grid_groups = {across.value_or(GroupPtr()), inside.value_or(GroupPtr())},
                        .configuration = std::move(configuration)};
  auto* const engine = new Engine(group.value_or(GroupPtr()), device, std::move(options), pieces.value_or(GroupPtr()));
  return EnginePtr(engine, &delete_engine);
}

std::shared_ptr<PythonFutureWrapper> wrap(FuturePtr future) {
  return std::make_shared<PythonFutureWrapper>(std::move(future));
}

/// What the Future of a blocking call holds: the caller has the tensor.
const c10::IValue kNothing(true);

void wait(const FuturePtr& future) {
  future->wait();
  future->value();  // throws what the worker caught, with its type
}

/// The bucket of a direct call by the name that its caller gives it, which is apart from the names of parameters.
BucketId direct_bucket(const std::optional<std::string>& name) {
  return name ? BucketId{{.name = "bucket:" + *name, .title = *name}} : BucketId();
}

FuturePtr all_reduce(Engine& engine, const at::Tensor& tensor, const std::optional<std::string>& bucket,
                     c10::IValue result = {}) {
  return engine.reduce_alone({.operation = Operation::all_reduce, .output = tensor, .bucket = direct_bucket(bucket)},
                             std::move(result));
}

FuturePtr reduce_scatter(Engine& engine, const at::Tensor& output, const at::Tensor& input,
                         const std::optional<std::string>& bucket, c10::IValue result = {}) {
  return engine.reduce_alone(
      {.operation = Operation::reduce_scatter, .output = output, .input = input, .bucket = direct_bucket(bucket)},
      std::move(result));
}

/// Names and numbers of elements, in order.
using Parameters = std::vector<std::pair<std::string, std::int64_t>>;

BucketId bucket_of(const Parameters& parameters) {
  BucketId bucket;
  for (const auto& [name, numel] : parameters) {
    bucket.push_back({.name = name, .numel = numel, .title = name});
  }
  return bucket;
}

/// One bucket of the pass that begin_pass() began, in place.
std::shared_ptr<PythonFutureWrapper> reduce(Engine& engine, const at::Tensor& bucket, const Parameters& parameters) {
  Reduction reduction{.operation = Operation::ddp_bucket, .output = bucket, .bucket = bucket_of(parameters)};
  FuturePtr future;
  {
    const py::gil_scoped_release no_gil;
    future = engine.reduce(std::move(reduction));
  }
  return wrap(std::move(future));
}

/// Beginning and size of each parameter, and where the result begins among them: see ParameterPlaces.
using Places = std::pair<std::vector<std::pair<std::int64_t, std::int64_t>>, std::int64_t>;

/// The same, complete on return. On the host all ranks make sure first that they reduce the same bucket.
/// `is_late`: with one problem for all buckets. The result is there behind end_compared_pass().
void reduce_compared_bucket(Engine& engine, const at::Tensor& bucket, const Parameters& parameters,
                            const Places& places, bool is_late) {
  engine.check_may_wait();
  wait(engine.reduce({.operation = Operation::all_reduce,
                      .output = bucket,
                      .bucket = bucket_of(parameters),
                      .places = {places.first, places.second},
                      .is_late = is_late},
                     kNothing));
}

/// One bucket of the pass that begin_pass() began: its shard, complete on return. `is_inside`: one of the ranks that
/// share an objective. `is_late`: as above.
void reduce_bucket_to_shard(Engine& engine, const at::Tensor& output, const at::Tensor& input,
                            const Parameters& parameters, const Places& places, bool is_inside, bool is_late) {
  engine.check_may_wait();
  wait(engine.reduce({.operation = is_inside ? Operation::reduce_scatter_inside : Operation::reduce_scatter,
                      .output = output,
                      .input = input,
                      .bucket = bucket_of(parameters),
                      .places = {places.first, places.second},
                      .is_late = is_late},
                     kNothing));
}

void end_compared_pass(Engine& engine) {
  engine.check_may_wait();
  if (const FuturePtr ended = engine.end_compared_pass()) {
    wait(ended);
  }
}

py::dict to_dict(const BucketRecord& record) {
  py::dict fields;
  fields["step"] = record.step;
  fields["index"] = record.index;
  fields["parameters"] = record.parameters;
  fields["group"] = record.group;
  fields["numel"] = record.numel;
  fields["dtype"] = dtype_name(record.dtype);
  fields["objectives"] = record.objectives;
  fields["rows"] = record.rows;
  fields["passes"] = record.passes;
  fields["width"] = record.width;
  fields["solved_step"] = record.solved_step;
  fields["gramian"] = record.result.gramian;
  fields["row_squares"] = record.result.norms.squares;
  fields["row_shares"] = record.result.norms.shares;
  fields["weights"] = record.result.weights;
  fields["status"] = static_cast<int>(record.result.solution.status);
  fields["iterations"] = record.result.solution.iterations;
  fields["certificate"] = record.result.solution.residual;
  return fields;
}

/// Calls a member function that may wait for the device, without the GIL.
template <class Result>
Result without_gil(const Engine& engine, Result (Engine::*function)() const) {
  const py::gil_scoped_release no_gil;
  return (engine.*function)();
}

py::list records_of(const Engine& engine) {
  py::list list;
  for (const BucketRecord& record : without_gil(engine, &Engine::records)) {
    list.append(to_dict(record));
  }
  return list;
}

py::dict counters_of(const Engine& engine) {
  const Counters counters = without_gil(engine, &Engine::counters);
  py::dict fields;
  fields["buckets"] = counters.buckets;
  fields["nonfinite"] = counters.nonfinite;
  fields["sparse"] = counters.sparse;
  fields["sent_across"] = counters.sent_across;
  fields["sent_inside"] = counters.sent_inside;
  return fields;
}

py::list solver_states_of(const Engine& engine) {
  py::list list;
  for (const SavedSolverState& bucket : without_gil(engine, &Engine::solver_states)) {
    list.append(py::make_tuple(bucket.parameters, bucket.objectives, bucket.values));
  }
  return list;
}

void set_solver_states(
    Engine& engine,
    const std::vector<std::tuple<std::vector<std::string>, std::vector<std::string>, std::vector<double>>>& saved) {
  std::vector<SavedSolverState> buckets;
  for (const auto& [parameters, objectives, values] : saved) {
    buckets.push_back({parameters, objectives, values});
  }
  const py::gil_scoped_release no_gil;
  engine.set_solver_states(buckets);
}

}  // namespace

void bind_engine(py::module_& module) {
  py::class_<Sketch>(module, "Sketch")
      .def(py::init([](std::int64_t width, double fraction, std::uint64_t seed, std::int64_t refresh_every, bool lag) {
             return Sketch{{width, fraction, seed}, {refresh_every, lag}};
           }),
           py::arg("width"), py::arg("fraction"), py::arg("seed"), py::arg("refresh_every"), py::arg("lag"))
      .def("width_for", [](const Sketch& sketch, std::int64_t n) { return sketch.options.width_for(n); }, py::arg("n"));
  py::class_<Grouping>(module, "Grouping")
      .def(py::init(&new_grouping), py::arg("scope"), py::arg("groups"), py::arg("by_support"),
           py::arg("keeps_mean_scale"), py::arg("has_pieces"), py::arg("replicated"));
  // Functions that wait or take the engine's locks release the GIL.
  py::class_<Engine, EnginePtr>(module, "Engine")
      .def(py::init(&new_engine), py::arg("group"), py::arg("device"), py::arg("method"), py::arg("seed"),
           py::arg("sketch"), py::arg("by_passes"), py::arg("row_norms"), py::arg("grouping"), py::arg("grid"),
           py::arg("across"), py::arg("inside"), py::arg("pieces"), py::arg("configuration"))
      .def("set_objective", torch::wrap_pybind_function_no_gil(&Engine::set_objective), py::arg("name"))
      .def("set_weight", torch::wrap_pybind_function_no_gil(&Engine::set_weight), py::arg("weight"))
      .def("set_accumulating", torch::wrap_pybind_function_no_gil(&Engine::set_accumulating),
           py::arg("is_accumulating"), py::arg("totals"))
      .def("open_passes", torch::wrap_pybind_function_no_gil(&Engine::open_passes))
      .def("discard_open_steps", torch::wrap_pybind_function_no_gil(&Engine::discard_open_steps))
      .def("begin_pass", torch::wrap_pybind_function_no_gil([](Engine& engine) { engine.begin_pass(); }))
      .def("end_pass", torch::wrap_pybind_function_no_gil(&Engine::end_pass))
      .def("reduce", torch::wrap_pybind_function(reduce), py::arg("bucket"), py::arg("parameters"))
      .def("refuse_reduction", torch::wrap_pybind_function_no_gil(&Engine::refuse_reduction))
      .def("reduce_compared_bucket", torch::wrap_pybind_function_no_gil(reduce_compared_bucket), py::arg("bucket"),
           py::arg("parameters"), py::arg("places"), py::arg("is_late"))
      .def("reduce_bucket_to_shard", torch::wrap_pybind_function_no_gil(reduce_bucket_to_shard), py::arg("output"),
           py::arg("input"), py::arg("parameters"), py::arg("places"), py::arg("is_inside"), py::arg("is_late"))
      .def("end_compared_pass", torch::wrap_pybind_function_no_gil(end_compared_pass))
      .def("all_reduce",
           torch::wrap_pybind_function_no_gil(
               [](Engine& engine, const at::Tensor& tensor, const std::optional<std::string>& bucket) {
                 engine.check_may_wait();
                 wait(all_reduce(engine, tensor, bucket, kNothing));
               }),
           py::arg("tensor"), py::arg("bucket"))
      .def("all_reduce_async",
           torch::wrap_pybind_function(
               [](Engine& engine, const at::Tensor& tensor, const std::optional<std::string>& bucket) {
                 FuturePtr future;
                 {
                   const py::gil_scoped_release no_gil;
                   future = all_reduce(engine, tensor, bucket);
                 }
                 return wrap(std::move(future));
               }),
           py::arg("tensor"), py::arg("bucket"))
      .def("reduce_scatter",
           torch::wrap_pybind_function_no_gil([](Engine& engine, const at::Tensor& output, const at::Tensor& input,
                                                 const std::optional<std::string>& bucket) {
             engine.check_may_wait();
             wait(reduce_scatter(engine, output, input, bucket, kNothing));
           }),
           py::arg("output"), py::arg("input"), py::arg("bucket"))
      .def("reduce_scatter_async",
           torch::wrap_pybind_function([](Engine& engine, const at::Tensor& output, const at::Tensor& input,
                                          const std::optional<std::string>& bucket) {
             FuturePtr future;
             {
               const py::gil_scoped_release no_gil;
               future = reduce_scatter(engine, output, input, bucket);
             }
             return wrap(std::move(future));
           }),
           py::arg("output"), py::arg("input"), py::arg("bucket"))
      .def("records", torch::wrap_pybind_function(records_of))
      .def("counters", torch::wrap_pybind_function(counters_of))
      .def("solver_states", torch::wrap_pybind_function(solver_states_of))
      .def("set_solver_states", torch::wrap_pybind_function(set_solver_states), py::arg("saved"))
      .def("scratch_bytes", torch::wrap_pybind_function_no_gil(&Engine::scratch_bytes))
      .def("shutdown", torch::wrap_pybind_function_no_gil(&Engine::shutdown))
      .def("is_at_home", &Engine::is_at_home)
      .def("check_at_home", torch::wrap_pybind_function(&Engine::check_at_home))
      .def_property("step", torch::wrap_pybind_function_no_gil(&Engine::step),
                    torch::wrap_pybind_function_no_gil(&Engine::set_step));
  module.def("reduces_on_device", &reduces_on_device, py::arg("device"));
}

}  // namespace bucket_moo
