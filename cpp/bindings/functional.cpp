// Bindings of the methods and of the functions on whole matrices: gramian, weights, combine.
#include <ATen/ops/empty.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <tuple>

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

MethodConfig make_mgda(bool normalize_l2) {
  return MethodConfig({.id = MethodId::mgda, .mgda = {normalize_l2 ? Normalize::l2 : Normalize::none}});
}

MethodConfig make_cagrad(double c, bool rescale) {
  return MethodConfig({.id = MethodId::cagrad, .cagrad = {c, rescale}});
}

MethodConfig make_pcgrad(bool sum, std::vector<int> permutation, int k) {
  return MethodConfig::pcgrad(sum ? Reduction::sum : Reduction::mean, std::move(permutation), k);
}

}  // namespace

void bind_functional(py::module_& module) {
  py::class_<MethodConfig>(module, "Method")
      .def_static("mean", &MethodConfig::mean, py::arg("weights"))
      .def_static("mgda", &make_mgda, py::arg("normalize_l2"))
      .def_static("cagrad", &make_cagrad, py::arg("c"), py::arg("rescale"))
      .def_static("pcgrad", &make_pcgrad, py::arg("sum"), py::arg("permutation"), py::arg("k"));
  module.def("gramian", torch::wrap_pybind_function_no_gil(gramian_of), py::arg("jacobian"));
  module.def("combine", torch::wrap_pybind_function_no_gil(combine_into), py::arg("jacobian"), py::arg("weights"),
             py::arg("out"));
  module.def("solve", torch::wrap_pybind_function_no_gil(solve_batch), py::arg("gramians"), py::arg("method"),
             py::arg("seed"), py::arg("step"));
}

}  // namespace bucket_moo
