// Bindings of the state, of the native DDP hook and of the collectives.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <memory>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include "bindings/bindings.hpp"
#include "hooks/bucket_moo_state.hpp"
#include "hooks/ddp_comm_hook.hpp"
#include "hooks/kept_weights.hpp"
#include "hooks/make_state.hpp"
#include "torch_types/dtype.hpp"

namespace bucket_moo {
namespace {

using torch::jit::PythonFutureWrapper;
using StatePtr = std::shared_ptr<BucketMooState>;
using GroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;

/// What Python's Sketch says.
struct Sketch {
  SketchOptions options;
  SolveSchedule schedule;
};

/// Ends the worker without the GIL: a Future's Python callback, run by the worker, may be waiting for it. In a forked
/// child there is no worker to end and nobody at the group's connections: there the state stays where it is.
void delete_state(BucketMooState* state) {
  if (!state->is_at_home()) {
    return;
  }
  if (PyGILState_Check() != 0) {
    const py::gil_scoped_release no_gil;
    delete state;
  } else {
    delete state;
  }
}

StatePtr new_state(std::optional<GroupPtr> group, const at::Device& device, const MethodConfig& method,
                   std::uint64_t seed, const std::optional<Sketch>& sketch, std::int64_t bucket_cap,
                   Configuration configuration) {
  const py::gil_scoped_release no_gil;
  const auto [sketch_options, schedule] = sketch.value_or(Sketch());
  StateOptions options{method, seed, sketch_options, schedule, bucket_cap, std::move(configuration)};
  return StatePtr(make_state(group.value_or(GroupPtr()), device, std::move(options)), &delete_state);
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

/// For a Python hook. Warnings go to whoever listens outside, which is autograd: it raises them when the pass is over.
/// Raised here as errors (python -W error) they would end the pass on this rank alone.
std::shared_ptr<PythonFutureWrapper> run_bucket(BucketMooState& state, c10d::GradBucket& bucket) {
  c10::WarningHandler* const autograd = c10::WarningUtils::get_warning_handler();
  const auto run = torch::wrap_pybind_function([autograd](BucketMooState& state, c10d::GradBucket& bucket) {
    const c10::WarningUtils::WarningHandlerGuard guard(autograd);
    // DDP expects the Future of a Python hook to hold a Python object; made here, where the GIL is held, so that the
    // worker needs none to complete it.
    c10::IValue buffer = torch::jit::toIValue(py::cast(bucket.getBufferRef()), c10::PyObjectType::get());
    FuturePtr future;
    {
      const py::gil_scoped_release no_gil;
      future = state.run_bucket(bucket, std::move(buffer));
    }
    return wrap(std::move(future));
  });
  return run(state, bucket);
}

py::dict to_dict(const BucketRecord& record) {
  py::dict fields;
  fields["step"] = record.step;
  fields["index"] = record.index;
  fields["parameters"] = record.parameters;
  fields["numel"] = record.numel;
  fields["dtype"] = dtype_name(record.dtype);
  fields["objectives"] = record.objectives;
  fields["width"] = record.width;
  fields["solved_step"] = record.solved_step;
  fields["gramian"] = record.result.gramian;
  fields["weights"] = record.result.weights;
  fields["status"] = static_cast<int>(record.result.solution.status);
  fields["iterations"] = record.result.solution.iterations;
  fields["certificate"] = record.result.solution.residual;
  return fields;
}

/// Calls a member function that may wait for the device, without the GIL.
template <class Result>
Result without_gil(const BucketMooState& state, Result (BucketMooState::*function)() const) {
  const py::gil_scoped_release no_gil;
  return (state.*function)();
}

py::list records_of(const BucketMooState& state) {
  py::list list;
  for (const BucketRecord& record : without_gil(state, &BucketMooState::records)) {
    list.append(to_dict(record));
  }
  return list;
}

py::dict counters_of(const BucketMooState& state) {
  const Counters counters = without_gil(state, &BucketMooState::counters);
  py::dict fields;
  fields["buckets"] = counters.buckets;
  fields["nonfinite"] = counters.nonfinite;
  fields["sparse"] = counters.sparse;
  return fields;
}

py::list solver_states_of(const BucketMooState& state) {
  py::list list;
  for (const SavedSolverState& bucket : without_gil(state, &BucketMooState::solver_states)) {
    list.append(py::make_tuple(bucket.parameters, bucket.objectives, bucket.values));
  }
  return list;
}

void set_solver_states(
    BucketMooState& state,
    const std::vector<std::tuple<std::vector<std::string>, std::vector<std::string>, std::vector<double>>>& saved) {
  std::vector<SavedSolverState> buckets;
  for (const auto& [parameters, objectives, values] : saved) {
    buckets.push_back({parameters, objectives, values});
  }
  const py::gil_scoped_release no_gil;
  state.set_solver_states(buckets);
}

void register_ddp_hook(const std::shared_ptr<c10d::Reducer>& reducer, StatePtr state) {
  reducer->register_comm_hook(std::make_unique<DdpCommHook>(std::move(state)));
}

/// Whether a backward pass has gone through this reducer: it notes when each gradient became ready.
bool backward_has_run(const std::shared_ptr<c10d::Reducer>& reducer) {
  const std::vector<std::int64_t> stats = reducer->get_backward_stats();
  return std::any_of(stats.begin(), stats.end(), [](std::int64_t time) { return time != 0; });
}

/// A reducer's parameters, protected in it. Its buckets have them too, but torch 2.15 shows no bucket whose storage is
/// not allocated: those of sparse gradients, and with lazy_bucket_allocation all.
class ReducerParameters : private c10d::Reducer {
 public:
  static const std::vector<at::Tensor>& of(const c10d::Reducer& reducer) {
    return reducer.*&ReducerParameters::params_;
  }
};

/// What a reducer reduces, whatever has happened to its module since.
std::vector<at::Tensor> parameters_of(const std::shared_ptr<c10d::Reducer>& reducer) {
  return ReducerParameters::of(*reducer);
}

}  // namespace

void bind_state(py::module_& module) {
  py::class_<Sketch>(module, "Sketch")
      .def(py::init([](std::int64_t width, double fraction, std::uint64_t seed, std::int64_t refresh_every, bool lag) {
             return Sketch{{width, fraction, seed}, {refresh_every, lag}};
           }),
           py::arg("width"), py::arg("fraction"), py::arg("seed"), py::arg("refresh_every"), py::arg("lag"))
      .def("width_for", [](const Sketch& sketch, std::int64_t n) { return sketch.options.width_for(n); }, py::arg("n"));
  // Functions that wait or take the state's locks release the GIL.
  py::class_<BucketMooState, StatePtr>(module, "State")
      .def(py::init(&new_state), py::arg("group"), py::arg("device"), py::arg("method"), py::arg("seed"),
           py::arg("sketch"), py::arg("bucket_cap"), py::arg("configuration"))
      .def("set_objective", torch::wrap_pybind_function_no_gil(&BucketMooState::set_objective), py::arg("name"))
      .def("set_weight", torch::wrap_pybind_function_no_gil(&BucketMooState::set_weight), py::arg("weight"))
      .def("name_parameters", torch::wrap_pybind_function_no_gil(&BucketMooState::name_parameters), py::arg("named"))
      .def("run_bucket", &run_bucket, py::arg("bucket"))
      .def("all_reduce", torch::wrap_pybind_function_no_gil([](BucketMooState& state, const at::Tensor& tensor) {
             state.check_may_wait();
             wait(state.all_reduce(tensor, kNothing));
           }),
           py::arg("tensor"))
      .def("all_reduce_async", torch::wrap_pybind_function([](BucketMooState& state, const at::Tensor& tensor) {
             FuturePtr future;
             {
               const py::gil_scoped_release no_gil;
               future = state.all_reduce(tensor);
             }
             return wrap(std::move(future));
           }),
           py::arg("tensor"))
      .def("reduce_scatter",
           torch::wrap_pybind_function_no_gil(
               [](BucketMooState& state, const at::Tensor& output, const at::Tensor& input) {
                 state.check_may_wait();
                 wait(state.reduce_scatter(output, input, kNothing));
               }),
           py::arg("output"), py::arg("input"))
      .def("reduce_scatter_async",
           torch::wrap_pybind_function([](BucketMooState& state, const at::Tensor& output, const at::Tensor& input) {
             FuturePtr future;
             {
               const py::gil_scoped_release no_gil;
               future = state.reduce_scatter(output, input);
             }
             return wrap(std::move(future));
           }),
           py::arg("output"), py::arg("input"))
      .def("records", torch::wrap_pybind_function(records_of))
      .def("counters", torch::wrap_pybind_function(counters_of))
      .def("solver_states", torch::wrap_pybind_function(solver_states_of))
      .def("set_solver_states", torch::wrap_pybind_function(set_solver_states), py::arg("saved"))
      .def("scratch_bytes", torch::wrap_pybind_function_no_gil(&BucketMooState::scratch_bytes))
      .def("shutdown", torch::wrap_pybind_function_no_gil(&BucketMooState::shutdown))
      .def("is_at_home", &BucketMooState::is_at_home)
      .def("check_at_home", torch::wrap_pybind_function(&BucketMooState::check_at_home))
      .def_property("step", torch::wrap_pybind_function_no_gil(&BucketMooState::step),
                    torch::wrap_pybind_function_no_gil(&BucketMooState::set_step));
  module.def("reduces_on_device", &reduces_on_device, py::arg("device"));
  module.def("register_ddp_hook", torch::wrap_pybind_function(register_ddp_hook), py::arg("reducer").none(false),
             py::arg("state").none(false));
  module.def("parameters_of", torch::wrap_pybind_function(parameters_of), py::arg("reducer").none(false));
  module.def("backward_has_run", torch::wrap_pybind_function(backward_has_run), py::arg("reducer").none(false));
}

}  // namespace bucket_moo
