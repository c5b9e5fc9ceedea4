// Gradients, methods and the solve.
#include "bucket_moo/solve.hpp"

#include <array>
#include <numeric>
#include <string>
#include <vector>

#include "bucket_moo/lanes.hpp"
#include "bucket_moo/method_list.hpp"
#include "bucket_moo/state_layout.hpp"
#include "c_api/method.hpp"
#include "c_api/rows.hpp"
#include "kernels/combine.hpp"
#include "kernels/gramian.hpp"

namespace bm = bucket_moo;
namespace c_api = bucket_moo::c_api;

static_assert(static_cast<int>(bm::Status::ok) == BUCKET_MOO_SOLVED);
static_assert(static_cast<int>(bm::Status::nonfinite) == BUCKET_MOO_NONFINITE);
static_assert(static_cast<int>(bm::Status::inactive) == BUCKET_MOO_INACTIVE);
static_assert(static_cast<int>(bm::Status::not_converged) == BUCKET_MOO_NOT_CONVERGED);
static_assert(static_cast<int>(bm::Status::fallback) == BUCKET_MOO_FALLBACK);

namespace {

bm::Rows checked_rows(const void* const* rows, int k, std::int64_t n, int dtype) {
  c_api::check_k(k);
  c_api::check_elements(n, "n");
  const bm::DType type = c_api::dtype_of(dtype);
  c_api::require(rows != nullptr, "rows must not be NULL");
  for (int i = 0; i < k; ++i) {
    c_api::require(rows[i] != nullptr || n == 0, "rows[", i, "] must not be NULL");
  }
  return {rows, k, n, type};
}

template <class Value>
std::span<const Value> checked_array(const Value* array, std::size_t count, const char* name) {
  c_api::require(array != nullptr || count == 0, "bucket_moo_method_options.", name, " must not be NULL where ", name,
                 "'s count is ", count);
  return {array, count};
}

bm::MethodConfig method_config(const bucket_moo_method_options* given) {
  c_api::require(given != nullptr, "options must not be NULL");
  const bucket_moo_method_options options = c_api::read_struct(given, "bucket_moo_method_options");
  c_api::require(options.name != nullptr, "bucket_moo_method_options.name must not be NULL");
  c_api::require(options.smoothing >= 0.0 && options.smoothing < 1.0,
                 "bucket_moo_method_options.smoothing must be >= 0 and < 1; got ", options.smoothing);
  const bm::MethodConfig config(
      {.name = options.name,
       .numbers = checked_array(options.numbers, options.number_count, "numbers"),
       .mode = options.mode == nullptr ? "" : options.mode,
       .preference = checked_array(options.preference, options.preference_count, "preference"),
       .permutation = checked_array(options.permutation, options.permutation_count, "permutation")});
  return config.smoothed(options.smoothing).rescaled(bm::length_of(options.length));
}

}  // namespace

int bucket_moo_abi_version() { return BUCKET_MOO_ABI_VERSION; }

const char* bucket_moo_version() { return BUCKET_MOO_VERSION; }

int bucket_moo_max_objectives() { return bm::kMaxObjectives; }

int bucket_moo_gramian(const void* const* rows, int k, int64_t n, int dtype, double* gramian) {
  return c_api::guarded([&] {
    const bm::Rows checked = checked_rows(rows, k, n, dtype);
    c_api::require(gramian != nullptr, "gramian must not be NULL");
    std::array<int, bm::kMaxObjectives> objective{};
    std::array<double, bm::kMaxObjectives> share{};
    std::iota(objective.begin(), objective.end(), 0);  // every row is an objective of its own
    share.fill(1.0);
    bm::gramian(checked, {objective.data(), share.data(), k}, gramian);
  });
}

int bucket_moo_combine(const void* const* rows, int k, int64_t n, int dtype, const double* weights, void* out) {
  return c_api::guarded([&] {
    const bm::Rows checked = checked_rows(rows, k, n, dtype);
    c_api::require(weights != nullptr, "weights must not be NULL");
    c_api::require(out != nullptr || n == 0, "out must not be NULL");
    bm::combine(checked, weights, out);
  });
}

int bucket_moo_method_count() { return bm::kMethods; }

const char* bucket_moo_method_name(int index) {
  return index >= 0 && index < bm::kMethods ? bm::small_method_names()[static_cast<std::size_t>(index)].c_str()
                                            : nullptr;
}

int bucket_moo_method_create(const bucket_moo_method_options* options, bucket_moo_method** method) {
  return c_api::guarded([&] {
    c_api::require(method != nullptr, "method must not be NULL");
    *method = new bucket_moo_method{method_config(options)};
  });
}

void bucket_moo_method_destroy(bucket_moo_method* method) { delete method; }

int bucket_moo_state_size(const bucket_moo_method* method, int k, size_t* size) {
  return c_api::guarded([&] {
    c_api::check_k(k);
    c_api::require(size != nullptr, "size must not be NULL");
    *size = bm::state_size(c_api::config_of(method).method(), k);
  });
}

int bucket_moo_solve(const bucket_moo_method* method, int k, const double* gramian,
                     const bucket_moo_solve_options* given, double* weights, bucket_moo_solution* solution) {
  return c_api::guarded([&] {
    const bm::MethodConfig& config = c_api::config_of(method);
    const bucket_moo_solve_options options = c_api::read_struct(given, "bucket_moo_solve_options");
    c_api::check_out_struct(solution, "bucket_moo_solution");
    c_api::check_k(k);
    config.check(k);
    c_api::require(gramian != nullptr, "gramian must not be NULL");
    c_api::require(weights != nullptr, "weights must not be NULL");
    const bm::Method chosen = config.method();
    const std::size_t expected = bm::state_size(chosen, k);
    c_api::require(options.state == nullptr || options.state_size == expected,
                   "bucket_moo_solve_options.state_size must be ", expected, " for ", k, " objectives; got ",
                   options.state_size);
    std::vector<double> scratch(bm::solve_scratch_size(k));
    const bm::Solution solved = bm::solve(bm::HostLanes{}, chosen, {options.seed, options.step, options.bucket}, k,
                                          gramian, weights, scratch.data(), expected == 0 ? nullptr : options.state);
    c_api::write_struct(solution, {.struct_size = 0,
                                   .status = static_cast<std::int32_t>(solved.status),
                                   .iterations = solved.iterations,
                                   .active = solved.active,
                                   .reserved = 0,
                                   .residual = solved.residual});
  });
}
