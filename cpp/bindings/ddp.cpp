// Bindings of what reduces DDP's buckets, and of what is read off DDP's reducer.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <memory>
#include <torch/csrc/distributed/c10d/reducer.hpp>
#include <utility>
#include <vector>

#include "bindings/bindings.hpp"
#include "hooks/ddp_buckets.hpp"
#include "hooks/ddp_comm_hook.hpp"

namespace bucket_moo {
namespace {

using torch::jit::PythonFutureWrapper;
using BucketsPtr = std::shared_ptr<DdpBuckets>;

/// In a forked child what the parent's threads are about to change stays as it is.
void delete_buckets(DdpBuckets* buckets) {
  if (buckets->engine().is_at_home()) {
    delete buckets;
  }
}

BucketsPtr new_buckets(std::shared_ptr<Engine> engine, std::int64_t bucket_cap) {
  return BucketsPtr(new DdpBuckets(std::move(engine), bucket_cap), &delete_buckets);
}

/// For a Python hook. Warnings go to whoever listens outside, which is autograd: it raises them when the pass is over.
/// Raised here as errors (python -W error) they would end the pass on this rank alone.
std::shared_ptr<PythonFutureWrapper> run_bucket(DdpBuckets& buckets, c10d::GradBucket& bucket) {
  c10::WarningHandler* const autograd = c10::WarningUtils::get_warning_handler();
  const auto run = torch::wrap_pybind_function([autograd](DdpBuckets& buckets, c10d::GradBucket& bucket) {
    const c10::WarningUtils::WarningHandlerGuard guard(autograd);
    // DDP expects the Future of a Python hook to hold a Python object; made here, where the GIL is held, so that the
    // worker needs none to complete it.
    c10::IValue buffer = torch::jit::toIValue(py::cast(bucket.getBufferRef()), c10::PyObjectType::get());
    FuturePtr future;
    {
      const py::gil_scoped_release no_gil;
      future = buckets.run(bucket, std::move(buffer));
    }
    return std::make_shared<PythonFutureWrapper>(std::move(future));
  });
  return run(buckets, bucket);
}

void register_ddp_hook(const std::shared_ptr<c10d::Reducer>& reducer, BucketsPtr buckets) {
  reducer->register_comm_hook(std::make_unique<DdpCommHook>(std::move(buckets)));
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

void bind_ddp(py::module_& module) {
  py::class_<DdpBuckets, BucketsPtr>(module, "DdpBuckets")
      .def(py::init(&new_buckets), py::arg("engine").none(false), py::arg("bucket_cap"))
      .def("name_parameters", torch::wrap_pybind_function_no_gil(&DdpBuckets::name_parameters), py::arg("named"))
      .def("kept_passes", &DdpBuckets::kept_passes)
      .def("discard_kept_passes", &DdpBuckets::discard_kept_passes)
      .def("run", &run_bucket, py::arg("bucket"));
  module.def("register_ddp_hook", torch::wrap_pybind_function(register_ddp_hook), py::arg("reducer").none(false),
             py::arg("buckets").none(false));
  module.def("parameters_of", torch::wrap_pybind_function(parameters_of), py::arg("reducer").none(false));
  module.def("backward_has_run", torch::wrap_pybind_function(backward_has_run), py::arg("reducer").none(false));
}

}  // namespace bucket_moo
