// The operators torch.ops.bucket_moo.*: Gramian, sketches, solve and combination of gradients in one place.
//
// solve's options are those of MethodOptions; seed, step and bucket are 64-bit words as int64 in two's complement,
// because a schema has no unsigned integers. A sketch's width is an int and no SymInt: it is a constant of the graph.
//
// None has a derivative. On CUDA everything is enqueued on torch's current stream, and nothing waits for the device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <cstddef>
#include <limits>
#include <string_view>
#include <tuple>
#include <vector>

#include "bucket_moo/lanes.hpp"
#include "bucket_moo/packed_triangle.hpp"
#include "bucket_moo/sketch.hpp"
#include "bucket_moo/solve.hpp"
#include "kernels/combine.hpp"
#include "kernels/gramian.hpp"
#include "kernels/sketch.hpp"
#include "methods/method_config.hpp"
#include "torch_types/dtype.hpp"
#include "torch_types/value_error.hpp"

#if BUCKET_MOO_CUDA
#include "combine.cuh"
#include "copy_from_host.cuh"
#include "gramian.cuh"
#include "rows.cuh"
#include "sketch.cuh"
#include "solve.cuh"
#include "torch_types/device.hpp"
#include "unpack_results.cuh"
#endif

namespace bucket_moo {
namespace {

using Solved = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;  // weights, status, iterations, residual

bool is_supported(c10::ScalarType type) {
  return type == c10::ScalarType::Float || type == c10::ScalarType::BFloat16 || type == c10::ScalarType::Half ||
         type == c10::ScalarType::Double;
}

std::string_view name_of(c10::ScalarType type) { return c10::getDtypeNames(type).first; }

/// Sizes may be symbolic: what holds for the traced sizes becomes a guard or an assertion of the graph.
bool holds(const c10::SymBool& condition) { return condition.expect_true(__FILE__, __LINE__); }

/// Raises TypeError or ValueError unless these are 1 to kMaxObjectives tensors of one supported dtype, one number of
/// elements and one device.
void check_jacobian(at::TensorList jacobian) {
  TORCH_CHECK_VALUE(!jacobian.empty() && jacobian.size() <= kMaxObjectives, "bucket_moo_ext: jacobian must have 1 to ",
                    kMaxObjectives, " rows; got ", jacobian.size());
  const at::Tensor& first = jacobian[0];
  for (std::size_t r = 0; r < jacobian.size(); ++r) {
    const at::Tensor& row = jacobian[r];
    TORCH_CHECK_VALUE(row.device() == first.device(),
                      "bucket_moo_ext: jacobian rows must be on one device; row 0 is on ", first.device(), ", row ", r,
                      " on ", row.device());
    TORCH_CHECK_TYPE(is_supported(row.scalar_type()), "bucket_moo_ext: jacobian must have one of the dtypes ",
                     kSupportedDtypes, "; row ", r, " has ", name_of(row.scalar_type()));
    TORCH_CHECK_TYPE(row.scalar_type() == first.scalar_type(),
                     "bucket_moo_ext: jacobian rows must have one dtype; row 0 has ", name_of(first.scalar_type()),
                     ", row ", r, " ", name_of(row.scalar_type()));
    TORCH_CHECK_VALUE(holds(row.sym_numel().sym_eq(first.sym_numel())),
                      "bucket_moo_ext: jacobian rows must have one size; row 0 has ", first.sym_numel(),
                      " elements, row ", r, " ", row.sym_numel());
  }
}

void check_weights(const at::Tensor& weights, at::TensorList jacobian) {
  TORCH_CHECK_VALUE(weights.dim() == 1 && holds(weights.sym_size(0).sym_eq(static_cast<std::int64_t>(jacobian.size()))),
                    "bucket_moo_ext: weights must be [", jacobian.size(), "], one a row; got sizes ",
                    weights.sym_sizes());
  TORCH_CHECK_VALUE(weights.device() == jacobian[0].device(),
                    "bucket_moo_ext: weights must be where the jacobian is, on ", jacobian[0].device(),
                    "; they are on ", weights.device());
}

/// Raises unless these are floating-point [K, K] or [B, K, K], 1 <= K <= kMaxObjectives.
void check_gramians(const at::Tensor& gramians) {
  TORCH_CHECK_TYPE(at::isFloatingType(gramians.scalar_type()), "bucket_moo_ext: gramian must be floating point; got ",
                   name_of(gramians.scalar_type()));
  TORCH_CHECK_VALUE(
      (gramians.dim() == 2 || gramians.dim() == 3) && holds(gramians.sym_size(-1).sym_eq(gramians.sym_size(-2))),
      "bucket_moo_ext: gramian must be [K, K] or [B, K, K]; got sizes ", gramians.sym_sizes());
  TORCH_CHECK_VALUE(holds(gramians.sym_size(-1).sym_ge(1)) && holds(gramians.sym_size(-1).sym_le(kMaxObjectives)),
                    "bucket_moo_ext: gramian must have 1 <= K <= ", kMaxObjectives,
                    "; got K = ", gramians.sym_size(-1));
}

void check_width(std::int64_t width) {
  TORCH_CHECK_VALUE(is_sketch_width(width), "bucket_moo_ext: width must be a power of two from ", kMinSketchWidth,
                    " to ", kMaxSketchWidth, "; got ", width);
}

/// A Jacobian as the kernels read it; rows that are not contiguous are copied.
class JacobianRows {
 public:
  explicit JacobianRows(at::TensorList jacobian) : dtype_(dtype_of(jacobian[0].scalar_type(), "jacobian")) {
    rows_.reserve(jacobian.size());
    data_.reserve(jacobian.size());
    for (const at::Tensor& row : jacobian) {
      rows_.push_back(row.contiguous());
      data_.push_back(rows_.back().const_data_ptr());
    }
  }

  int count() const { return static_cast<int>(data_.size()); }
  std::int64_t size() const { return rows_[0].numel(); }
  DType dtype() const { return dtype_; }
  const void* row(int r) const { return data_[static_cast<std::size_t>(r)]; }
  Rows rows() const { return {data_.data(), count(), size(), dtype_}; }

 private:
  std::vector<at::Tensor> rows_;
  std::vector<const void*> data_;
  DType dtype_;
};

/// Empty tensors for what solve returns, on the device of the gramians.
Solved empty_solutions(const at::Tensor& gramians) {
  const c10::SymIntArrayRef sizes = gramians.sym_sizes();
  const c10::SymIntArrayRef batch = sizes.slice(0, sizes.size() - 2);
  const at::TensorOptions doubles = gramians.options().dtype(at::kDouble);
  const at::TensorOptions longs = gramians.options().dtype(at::kLong);
  return {at::empty_symint(sizes.slice(0, sizes.size() - 1), doubles), at::empty_symint(batch, longs),
          at::empty_symint(batch, longs), at::empty_symint(batch, doubles)};
}

at::Tensor empty_gramian(at::TensorList jacobian) {
  const auto k = static_cast<std::int64_t>(jacobian.size());
  return at::empty({k, k}, jacobian[0].options().dtype(at::kDouble));
}

/// [K, width], see sketch_dtype().
at::Tensor empty_sketches(at::TensorList jacobian, std::int64_t width) {
  const bool doubles = sketch_dtype(dtype_of(jacobian[0].scalar_type(), "jacobian")) == DType::float64;
  return at::empty({static_cast<std::int64_t>(jacobian.size()), width},
                   jacobian[0].options().dtype(doubles ? at::kDouble : at::kFloat));
}

/// Row r of a contiguous matrix.
void* row_of(const at::Tensor& matrix, int r) {
  const std::int64_t bytes = matrix.size(1) * static_cast<std::int64_t>(matrix.element_size());
  return static_cast<char*>(matrix.mutable_data_ptr()) + r * bytes;
}

at::Tensor empty_update(at::TensorList jacobian) {
  return at::empty_symint(jacobian[0].sym_sizes(), jacobian[0].options());
}

// --- CPU ---

at::Tensor gramian_cpu(at::TensorList jacobian) {
  check_jacobian(jacobian);
  const JacobianRows rows(jacobian);
  std::vector<int> objective(jacobian.size());
  for (int i = 0; i < rows.count(); ++i) objective[static_cast<std::size_t>(i)] = i;
  const std::vector<double> share(jacobian.size(), 1.0);
  at::Tensor out = empty_gramian(jacobian);
  gramian(rows.rows(), {objective.data(), share.data(), rows.count()}, out.mutable_data_ptr<double>());
  return out;
}

at::Tensor sketch_cpu(at::TensorList jacobian, std::int64_t width, std::int64_t seed, std::int64_t step,
                      std::int64_t bucket) {
  check_jacobian(jacobian);
  check_width(width);
  const JacobianRows rows(jacobian);
  const SketchMap map(
      {static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(step), static_cast<std::uint64_t>(bucket)}, width);
  at::Tensor out = empty_sketches(jacobian, width);
  for (int r = 0; r < rows.count(); ++r) sketch(rows.row(r), rows.size(), rows.dtype(), map, row_of(out, r));
  return out;
}

at::Tensor combine_cpu(at::TensorList jacobian, const at::Tensor& weights) {
  check_jacobian(jacobian);
  check_weights(weights, jacobian);
  const JacobianRows rows(jacobian);
  const at::Tensor coefficient = weights.to(at::kDouble).contiguous();
  at::Tensor out = empty_update(jacobian);
  combine(rows.rows(), coefficient.const_data_ptr<double>(), out.mutable_data_ptr());
  return out;
}

MethodConfig method_config(const MethodOptions& options, double length) {
  return with_torch_errors([&] { return MethodConfig(options).rescaled(length_of(length)); });
}

void check_objectives(const MethodConfig& config, int k) {
  with_torch_errors([&] { config.check(k); });
}

Solved solve_cpu(const at::Tensor& gramians, std::string_view method, at::ArrayRef<double> numbers,
                 std::string_view mode, at::ArrayRef<double> preference, at::IntArrayRef permutation, std::int64_t seed,
                 std::int64_t step, double length) {
  check_gramians(gramians);
  const MethodConfig config = method_config({method, numbers, mode, preference, permutation}, length);
  const at::Tensor input = gramians.to(at::kDouble).contiguous();
  const int k = static_cast<int>(input.size(-1));
  check_objectives(config, k);
  Solved out = empty_solutions(input);
  auto& [weights, status, iterations, residual] = out;
  double* const weights_data = weights.mutable_data_ptr<double>();
  std::int64_t* const status_data = status.mutable_data_ptr<std::int64_t>();
  std::int64_t* const iterations_data = iterations.mutable_data_ptr<std::int64_t>();
  double* const residual_data = residual.mutable_data_ptr<double>();
  const double* const data = input.const_data_ptr<double>();
  std::vector<double> scratch(solve_scratch_size(k));
  const Method chosen = config.method();
  for (std::int64_t b = 0; b < residual.numel(); ++b) {
    const RandomKey key{static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(step),
                        static_cast<std::uint64_t>(b)};
    const Solution solution =
        solve(HostLanes{}, chosen, key, k, data + b * k * k, weights_data + b * k, scratch.data());
    status_data[b] = static_cast<std::int64_t>(solution.status);
    iterations_data[b] = solution.iterations;
    residual_data[b] = solution.residual;
  }
  return out;
}

// --- CUDA ---

#if BUCKET_MOO_CUDA

at::Tensor workspace_of(std::size_t bytes, const at::Tensor& like) {
  return at::empty({static_cast<std::int64_t>(bytes)}, like.options().dtype(at::kByte));
}

cuda::DeviceRows device_rows(const JacobianRows& rows) {
  cuda::DeviceRows device;
  for (int r = 0; r < rows.count(); ++r) device.scattered[r] = rows.row(r);
  device.count = rows.count();
  device.size = rows.size();
  device.dtype = rows.dtype();
  return device;
}

at::Tensor gramian_cuda(at::TensorList jacobian) {
  check_jacobian(jacobian);
  const KernelDeviceGuard guard(jacobian[0].device());
  const cudaStream_t stream = current_stream(jacobian[0].device());
  const JacobianRows rows(jacobian);
  const int k = rows.count();
  at::Tensor out = empty_gramian(jacobian);
  const at::Tensor packed = at::empty({packed_size(k)}, out.options());
  std::size_t bytes = 0;
  check_cuda(cuda::gramian_workspace_size(k, &bytes), "sizing the Gramian's workspace");
  constexpr std::size_t kTicketBytes = cuda::kGramianTickets * sizeof(unsigned);
  const at::Tensor workspace = workspace_of(bytes + kTicketBytes, out);
  void* const tickets = static_cast<std::byte*>(workspace.mutable_data_ptr()) + bytes;  // which are those of doubles
  check_cuda(cudaMemsetAsync(tickets, 0, kTicketBytes, stream), "clearing the Gramian's tickets");
  cuda::GramianArguments arguments;
  arguments.rows = device_rows(rows);
  arguments.packed = packed.mutable_data_ptr<double>();
  arguments.workspace = workspace.mutable_data_ptr();
  arguments.tickets = static_cast<unsigned*>(tickets);
  check_cuda(cuda::launch_gramian(arguments, stream), "enqueueing the Gramian");
  check_cuda(cuda::launch_unpack_gramian(arguments.packed, k, out.mutable_data_ptr<double>(), stream),
             "enqueueing the Gramian's unpacking");
  return out;
}

at::Tensor sketch_cuda(at::TensorList jacobian, std::int64_t width, std::int64_t seed, std::int64_t step,
                       std::int64_t bucket) {
  check_jacobian(jacobian);
  check_width(width);
  const KernelDeviceGuard guard(jacobian[0].device());
  const cudaStream_t stream = current_stream(jacobian[0].device());
  const JacobianRows rows(jacobian);
  at::Tensor out = empty_sketches(jacobian, width);
  std::size_t bytes = 0;
  check_cuda(cuda::sketch_workspace_size(rows.size(), rows.dtype(), width, &bytes), "sizing the sketch's workspace");
  const at::Tensor workspace = workspace_of(bytes, out);  // of one row after the other
  cuda::SketchArguments arguments;
  arguments.size = rows.size();
  arguments.dtype = rows.dtype();
  arguments.width = width;
  arguments.seed = static_cast<std::uint64_t>(seed);
  arguments.step = static_cast<std::uint64_t>(step);
  arguments.bucket = static_cast<std::uint64_t>(bucket);
  arguments.workspace = workspace.mutable_data_ptr();
  for (int r = 0; r < rows.count(); ++r) {
    arguments.row = rows.row(r);
    arguments.out = row_of(out, r);
    check_cuda(cuda::launch_sketch(arguments, stream), "enqueueing the sketch");
  }
  return out;
}

at::Tensor combine_cuda(at::TensorList jacobian, const at::Tensor& weights) {
  check_jacobian(jacobian);
  check_weights(weights, jacobian);
  const KernelDeviceGuard guard(jacobian[0].device());
  const cudaStream_t stream = current_stream(jacobian[0].device());
  const JacobianRows rows(jacobian);
  const at::Tensor coefficient = weights.to(at::kDouble).contiguous();
  at::Tensor out = empty_update(jacobian);
  check_cuda(
      cuda::launch_combine(device_rows(rows), coefficient.const_data_ptr<double>(), out.mutable_data_ptr(), stream),
      "enqueueing the combination");
  return out;
}

/// A copy of `values` in device memory; an undefined tensor for none.
template <class Value>
at::Tensor stored(const std::vector<Value>& values, const at::Tensor& like, cudaStream_t stream) {
  if (values.empty()) return {};
  const std::size_t bytes = values.size() * sizeof(Value);
  at::Tensor copy = workspace_of(bytes, like);
  check_cuda(cuda::launch_copy_from_host(values.data(), bytes, copy.mutable_data_ptr(), stream),
             "storing a method's options");
  return copy;
}

Solved solve_cuda(const at::Tensor& gramians, std::string_view method, at::ArrayRef<double> numbers,
                  std::string_view mode, at::ArrayRef<double> preference, at::IntArrayRef permutation,
                  std::int64_t seed, std::int64_t step, double length) {
  check_gramians(gramians);
  const MethodConfig config = method_config({method, numbers, mode, preference, permutation}, length);
  const KernelDeviceGuard guard(gramians.device());
  const cudaStream_t stream = current_stream(gramians.device());
  const at::Tensor input = gramians.to(at::kDouble).contiguous();
  const int k = static_cast<int>(input.size(-1));
  check_objectives(config, k);
  Solved out = empty_solutions(input);
  auto& [weights, status, iterations, residual] = out;
  TORCH_CHECK_VALUE(residual.numel() <= std::numeric_limits<int>::max(),
                    "bucket_moo_ext: gramian must be a batch of at most ", std::numeric_limits<int>::max(),
                    " on CUDA; got ", residual.numel());
  const int batch = static_cast<int>(residual.numel());
  const at::Tensor shares = stored(config.preference(), input, stream);
  const at::Tensor orders = stored(config.permutation(), input, stream);
  const at::Tensor solutions = workspace_of(sizeof(Solution) * static_cast<std::size_t>(batch), input);
  cuda::SolveBatch problems;
  problems.method = config.method(shares.defined() ? static_cast<const double*>(shares.const_data_ptr()) : nullptr,
                                  orders.defined() ? static_cast<const int*>(orders.const_data_ptr()) : nullptr);
  problems.key = {static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(step), 0};
  problems.batch = batch;
  problems.k = k;
  problems.gramians = input.const_data_ptr<double>();
  problems.weights = weights.mutable_data_ptr<double>();
  problems.solutions = static_cast<Solution*>(solutions.mutable_data_ptr());
  int most = 0;
  check_cuda(cuda::solve_limit(problems.method, &most), "asking for the solver's limit");
  TORCH_CHECK_VALUE(k <= most, "bucket_moo_ext: this GPU can solve this method for at most ", most, " objectives; got ",
                    k);
  check_cuda(cuda::launch_solve(problems, stream), "enqueueing the solver");
  check_cuda(cuda::launch_unpack_solutions(problems.solutions, batch, status.mutable_data_ptr<std::int64_t>(),
                                           iterations.mutable_data_ptr<std::int64_t>(),
                                           residual.mutable_data_ptr<double>(), stream),
             "enqueueing the solutions' unpacking");
  return out;
}

#else

[[noreturn]] void refuse_cuda() {
  TORCH_CHECK(
      false,
      "bucket_moo_ext: this build has no CUDA kernels (build_info()['cuda'] is False), so tensors must be on the "
      "CPU. Rebuild it where nvcc is on the PATH: pip install --no-build-isolation --force-reinstall --no-deps . "
      "(in its source folder)");
}

at::Tensor gramian_cuda(at::TensorList) { refuse_cuda(); }

at::Tensor sketch_cuda(at::TensorList, std::int64_t, std::int64_t, std::int64_t, std::int64_t) { refuse_cuda(); }

at::Tensor combine_cuda(at::TensorList, const at::Tensor&) { refuse_cuda(); }

Solved solve_cuda(const at::Tensor&, std::string_view, at::ArrayRef<double>, std::string_view, at::ArrayRef<double>,
                  at::IntArrayRef, std::int64_t, std::int64_t, double) {
  refuse_cuda();
}

#endif

// --- Meta: what torch.compile and FakeTensor know of the results ---

at::Tensor gramian_meta(at::TensorList jacobian) {
  check_jacobian(jacobian);
  return empty_gramian(jacobian);
}

at::Tensor sketch_meta(at::TensorList jacobian, std::int64_t width, c10::SymInt, c10::SymInt, c10::SymInt) {
  check_jacobian(jacobian);
  check_width(width);
  return empty_sketches(jacobian, width);
}

at::Tensor combine_meta(at::TensorList jacobian, const at::Tensor& weights) {
  check_jacobian(jacobian);
  check_weights(weights, jacobian);
  return empty_update(jacobian);
}

Solved solve_meta(const at::Tensor& gramians, std::string_view method, at::ArrayRef<double> numbers,
                  std::string_view mode, at::ArrayRef<double> preference, at::IntArrayRef permutation, c10::SymInt,
                  c10::SymInt, double length) {
  check_gramians(gramians);
  const MethodConfig config = method_config({method, numbers, mode, preference, permutation}, length);
  // Only options that are made for one K make K a constant of the graph.
  if (config.expected_objectives() > 0)
    check_objectives(config, static_cast<int>(gramians.sym_size(-1).guard_int(__FILE__, __LINE__)));
  return empty_solutions(gramians);
}

}  // namespace

TORCH_LIBRARY(bucket_moo, library) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  library.def("gramian(Tensor[] rows) -> Tensor", tags);
  library.def("sketch(Tensor[] rows, int width=16384, SymInt seed=0, SymInt step=0, SymInt bucket=0) -> Tensor", tags);
  library.def("combine(Tensor[] rows, Tensor weights) -> Tensor", tags);
  library.def(
      "solve(Tensor gramians, str method=\"mgda\", float[] numbers=[], str mode=\"\", float[] preference=[], "
      "int[] permutation=[], SymInt seed=0, SymInt step=0, float length=0.0) "
      "-> (Tensor weights, Tensor status, Tensor iterations, Tensor residual)",
      tags);
}

TORCH_LIBRARY_IMPL(bucket_moo, CPU, library) {
  // In the emulation that tests use, the CPU stands in for a GPU.
  library.impl("gramian", BUCKET_MOO_EMULATED_CUDA ? &gramian_cuda : &gramian_cpu);
  library.impl("sketch", BUCKET_MOO_EMULATED_CUDA ? &sketch_cuda : &sketch_cpu);
  library.impl("combine", BUCKET_MOO_EMULATED_CUDA ? &combine_cuda : &combine_cpu);
  library.impl("solve", BUCKET_MOO_EMULATED_CUDA ? &solve_cuda : &solve_cpu);
}

TORCH_LIBRARY_IMPL(bucket_moo, CUDA, library) {
  library.impl("gramian", &gramian_cuda);
  library.impl("sketch", &sketch_cuda);
  library.impl("combine", &combine_cuda);
  library.impl("solve", &solve_cuda);
}

TORCH_LIBRARY_IMPL(bucket_moo, Meta, library) {
  library.impl("gramian", &gramian_meta);
  library.impl("sketch", &sketch_meta);
  library.impl("combine", &combine_meta);
  library.impl("solve", &solve_meta);
}

}  // namespace bucket_moo
