// Binding of a method with its options.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bindings/bindings.hpp"
#include "bucket_moo/solve.hpp"
#include "methods/method_config.hpp"

namespace bucket_moo {
namespace {

MethodConfig make_method(const std::string& name, const std::vector<double>& numbers, const std::string& mode,
                         const std::vector<double>& preference, const std::vector<std::int64_t>& permutation,
                         const std::vector<std::string>& objectives) {
  return MethodConfig({name, numbers, mode, preference, permutation, objectives});
}

MethodConfig rescaled(const MethodConfig& config, double length) { return config.rescaled(length_of(length)); }

std::size_t state_size_of(const MethodConfig& config, int k) { return state_size(config.method(), k); }

}  // namespace

void bind_methods(py::module_& module) {
  py::class_<MethodConfig>(module, "Method")
      .def(py::init(&make_method), py::arg("name"), py::arg("numbers") = std::vector<double>(), py::arg("mode") = "",
           py::arg("preference") = std::vector<double>(), py::arg("permutation") = std::vector<std::int64_t>(),
           py::arg("objectives") = std::vector<std::string>())
      .def("smoothed", &MethodConfig::smoothed, py::arg("alpha"))
      .def("rescaled", &rescaled, py::arg("length"))
      .def("state_size", &state_size_of, py::arg("k"));
  module.attr("METHOD_NAMES") = py::tuple(py::cast(std::vector<std::string>(kMethodNames.begin(), kMethodNames.end())));
}

}  // namespace bucket_moo
