// The extension module `bucket_moo_ext._emulation`: what tests of the device path ask of the emulation.
#include <c10/core/StreamGuard.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "device.hpp"
#include "emulation.hpp"
#include "nccl.hpp"
#include "operations.hpp"

namespace {

namespace emulation = bucket_moo::emulation;
namespace py = pybind11;

py::dict operations() {
  const emulation::Operations counted = emulation::operations();
  py::dict all;
  all["kernels"] = counted.kernels;
  all["copies"] = counted.copies;
  all["memsets"] = counted.memsets;
  all["collectives"] = counted.collectives;
  all["event_records"] = counted.event_records;
  all["event_waits"] = counted.event_waits;
  all["graph_launches"] = counted.graph_launches;
  all["on_legacy_stream"] = counted.on_legacy_stream;
  all["synchronisations"] = counted.synchronisations;
  all["allocations"] = counted.allocations;
  return all;
}

/// torch.cuda.CUDAGraph, on the current stream.
class Graph {
 public:
  Graph() = default;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { cudaGraphExecDestroy(exec_); }

  void begin() {
    emulation::check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
  }
  void end() {
    cudaGraph_t graph = nullptr;
    emulation::check(cudaStreamEndCapture(stream(), &graph), "cudaStreamEndCapture");
    emulation::check(cudaGraphInstantiate(&exec_, graph), "cudaGraphInstantiate");
    cudaGraphDestroy(graph);
  }
  void replay() { emulation::check(cudaGraphLaunch(exec_, stream()), "cudaGraphLaunch"); }

 private:
  static cudaStream_t stream() { return emulation::handle_of(emulation::current_stream()); }
  cudaGraphExec_t exec_ = nullptr;
};

/// A new stream, current from enter() to exit(). It waits for none.
class OnNewStream {
 public:
  void enter() {
    const c10::Stream stream = emulation::new_stream();
    guard_.emplace(stream);
  }
  void exit(const py::args&) { guard_.reset(); }

 private:
  std::optional<c10::StreamGuard> guard_;
};

}  // namespace

PYBIND11_MODULE(_emulation, module) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  module.def("install_device", &emulation::install_device);
  module.def("operations", &operations);
  module.def("collect_faults", &emulation::collect_faults);
  module.def("take_faults", &emulation::take_faults);
  module.def("set_cached", &emulation::set_cached);
  module.def("set_max_pitch", &emulation::set_max_pitch);
  py::class_<OnNewStream>(module, "OnNewStream")
      .def(py::init<>())
      .def("__enter__", &OnNewStream::enter)
      .def("__exit__", &OnNewStream::exit);
  py::class_<Graph>(module, "Graph")
      .def(py::init<>())
      .def("begin", &Graph::begin, no_gil)
      .def("end", &Graph::end, no_gil)
      .def("replay", &Graph::replay, no_gil);
  py::class_<emulation::Nccl, c10d::Backend, c10::intrusive_ptr<emulation::Nccl>>(module, "Nccl")
      .def(py::init<c10::intrusive_ptr<c10d::Backend>>());
}
