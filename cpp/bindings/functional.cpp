// Bindings of the methods and of the functions on whole matrices: gramian, weights, combine.
#include <ATen/ops/empty.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <initializer_list>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.hpp"
#include "bucket_moo/lanes.hpp"
#include "bucket_moo/solve.hpp"
#include "collective/dtype.hpp"
#include "hooks/method_config.hpp"
#include "kernels/combine.hpp"
#include "kernels/gramian.hpp"

namespace bucket_moo {
namespace {

/// Rows of a Jacobian: K one-dimensional contiguous CPU tensors of one size and dtype, as the Python side prepares
/// them.
class JacobianRows {
 public:
  explicit JacobianRows(const std::vector<at::Tensor>& rows) : dtype_(dtype_of(rows.at(0).scalar_type(), "jacobian")) {
    for (const at::Tensor& row : rows) {
      TORCH_CHECK_VALUE(row.dim() == 1 && row.is_contiguous() && row.device().is_cpu() &&
                            row.numel() == rows[0].numel() && row.scalar_type() == rows[0].scalar_type(),
                        "bucket_moo_ext: jacobian rows must be contiguous one-dimensional CPU tensors of one size and "
                        "dtype; got one of sizes ",
                        row.sizes(), ", dtype ", row.scalar_type(), ", on ", row.device());
      data_.push_back(row.const_data_ptr());
    }
    size_ = rows[0].numel();
  }

  int count() const { return static_cast<int>(data_.size()); }
  Rows rows() const { return {data_.data(), count(), size_, dtype_}; }

 private:
  std::vector<const void*> data_;
  std::int64_t size_ = 0;
  DType dtype_;
};

at::Tensor gramian_of(const std::vector<at::Tensor>& jacobian) {
  const JacobianRows rows(jacobian);
  const int k = rows.count();
  std::vector<int> objective(static_cast<std::size_t>(k));
  const std::vector<double> share(static_cast<std::size_t>(k), 1.0);
  for (int i = 0; i < k; ++i) {
    objective[static_cast<std::size_t>(i)] = i;
  }
  at::Tensor out = at::empty({k, k}, at::kDouble);
  gramian(rows.rows(), {objective.data(), share.data(), k}, out.mutable_data_ptr<double>());
  return out;
}

void combine_into(const std::vector<at::Tensor>& jacobian, const at::Tensor& weights, const at::Tensor& out) {
  const JacobianRows rows(jacobian);
  combine(rows.rows(), weights.const_data_ptr<double>(), out.mutable_data_ptr());
}

/// [B, K, K] float64 -> weights [B, K] float64, status [B] int64, iterations [B] int64, residual [B] float64.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> solve_batch(const at::Tensor& gramians,
                                                                       const MethodConfig& config, std::uint64_t seed,
                                                                       std::uint64_t step) {
  TORCH_CHECK_VALUE(gramians.dim() == 3 && gramians.size(1) == gramians.size(2) && gramians.size(1) >= 1 &&
                        gramians.size(1) <= kMaxObjectives,
                    "bucket_moo_ext: gramian must be [K, K] or [B, K, K] with 1 <= K <= ", kMaxObjectives,
                    "; got sizes ", gramians.sizes());
  const at::Tensor input = gramians.contiguous();
  const std::int64_t batch = input.size(0);
  const int k = static_cast<int>(input.size(1));
  config.check(k);
  at::Tensor weights = at::empty({batch, k}, at::kDouble);
  at::Tensor status = at::empty({batch}, at::kLong);
  at::Tensor iterations = at::empty({batch}, at::kLong);
  at::Tensor residual = at::empty({batch}, at::kDouble);
  std::vector<double> scratch(solve_scratch_size(k));
  const Method method = config.method();
  for (std::int64_t b = 0; b < batch; ++b) {
    const RandomKey key{seed, step, static_cast<std::uint64_t>(b)};
    const Solution solution = solve(HostLanes{}, method, key, k, input.const_data_ptr<double>() + b * k * k,
                                    weights.mutable_data_ptr<double>() + b * k, scratch.data());
    status.mutable_data_ptr<std::int64_t>()[b] = static_cast<std::int64_t>(solution.status);
    iterations.mutable_data_ptr<std::int64_t>()[b] = solution.iterations;
    residual.mutable_data_ptr<double>()[b] = solution.residual;
  }
  return {weights, status, iterations, residual};
}

/// Value of an option's name; the Python side has checked that it is one of these.
template <class Value>
Value value_of(const std::string& name, std::initializer_list<std::pair<const char*, Value>> values) {
  for (const auto& [known, value] : values) {
    if (name == known) {
      return value;
    }
  }
  TORCH_CHECK_VALUE(false, "bucket_moo_ext: unknown option '", name, "'");
}

using Permutation = std::vector<std::vector<int>>;

MethodConfig make_mean(std::vector<double> weights) { return MethodConfig({.id = MethodId::mean}, std::move(weights)); }

MethodConfig make_mgda(const std::string& normalize) {
  const auto value = value_of<Normalize>(normalize, {{"none", Normalize::none}, {"l2", Normalize::l2}});
  return MethodConfig({.id = MethodId::mgda, .mgda = {value}});
}

MethodConfig make_cagrad(double c, bool rescale) {
  return MethodConfig({.id = MethodId::cagrad, .cagrad = {c, rescale}});
}

MethodConfig make_pcgrad(const std::string& reduction, const Permutation& permutation) {
  const auto value = value_of<Reduction>(reduction, {{"mean", Reduction::mean}, {"sum", Reduction::sum}});
  return MethodConfig({.id = MethodId::pcgrad, .pcgrad = {.reduction = value}}, {}, permutation);
}

MethodConfig make_upgrad(std::vector<double> preference) {
  return MethodConfig({.id = MethodId::upgrad}, std::move(preference));
}

MethodConfig make_dualproj(std::vector<double> preference) {
  return MethodConfig({.id = MethodId::dualproj}, std::move(preference));
}

MethodConfig make_imtlg() { return MethodConfig({.id = MethodId::imtlg}); }

MethodConfig make_aligned_mtl(std::vector<double> preference, const std::string& scale_mode) {
  const auto value = value_of<ScaleMode>(
      scale_mode, {{"min", ScaleMode::min}, {"median", ScaleMode::median}, {"mean", ScaleMode::mean}});
  return MethodConfig({.id = MethodId::aligned_mtl, .aligned_mtl = {.scale_mode = value}}, std::move(preference));
}

MethodConfig make_nash_mtl(double max_norm) {
  return MethodConfig({.id = MethodId::nash_mtl, .nash_mtl = {.max_norm = max_norm}});
}

MethodConfig make_fairgrad(double alpha) {
  return MethodConfig({.id = MethodId::fairgrad, .fairgrad = {.alpha = alpha}});
}

MethodConfig make_config(std::vector<double> preference) {
  return MethodConfig({.id = MethodId::config}, std::move(preference));
}

MethodConfig make_gradvac(double beta, const Permutation& permutation) {
  return MethodConfig({.id = MethodId::gradvac, .gradvac = {.beta = beta}}, {}, permutation);
}

MethodConfig make_krum(int n_byzantine, int n_selected) {
  return MethodConfig({.id = MethodId::krum, .krum = {n_byzantine, n_selected}});
}

MethodConfig make_adasum() { return MethodConfig({.id = MethodId::adasum}); }

std::size_t state_size_of(const MethodConfig& config, int k) { return state_size(config.method(), k); }

}  // namespace

void bind_functional(py::module_& module) {
  py::class_<MethodConfig>(module, "Method")
      .def_static("mean", &make_mean, py::arg("weights"))
      .def_static("mgda", &make_mgda, py::arg("normalize"))
      .def_static("cagrad", &make_cagrad, py::arg("c"), py::arg("rescale"))
      .def_static("pcgrad", &make_pcgrad, py::arg("reduction"), py::arg("permutation"))
      .def_static("upgrad", &make_upgrad, py::arg("preference"))
      .def_static("dualproj", &make_dualproj, py::arg("preference"))
      .def_static("imtlg", &make_imtlg)
      .def_static("aligned_mtl", &make_aligned_mtl, py::arg("preference"), py::arg("scale_mode"))
      .def_static("nash_mtl", &make_nash_mtl, py::arg("max_norm"))
      .def_static("fairgrad", &make_fairgrad, py::arg("alpha"))
      .def_static("config", &make_config, py::arg("preference"))
      .def_static("gradvac", &make_gradvac, py::arg("beta"), py::arg("permutation"))
      .def_static("krum", &make_krum, py::arg("n_byzantine"), py::arg("n_selected"))
      .def_static("adasum", &make_adasum)
      .def("smoothed", &MethodConfig::smoothed, py::arg("alpha"))
      .def("state_size", &state_size_of, py::arg("k"));
  module.attr("METHOD_NAMES") = py::tuple(py::cast(std::vector<std::string>(kMethodNames, kMethodNames + kMethods)));
  module.def("gramian", torch::wrap_pybind_function_no_gil(gramian_of), py::arg("jacobian"));
  module.def("combine", torch::wrap_pybind_function_no_gil(combine_into), py::arg("jacobian"), py::arg("weights"),
             py::arg("out"));
  module.def("solve", torch::wrap_pybind_function_no_gil(solve_batch), py::arg("gramians"), py::arg("method"),
             py::arg("seed"), py::arg("step"));
}

}  // namespace bucket_moo
