// Solves on the GPU: the core's solve() under the WarpLanes policy.
#include <cuda_runtime.h>

#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/method_list.hpp>
#include <bucket_moo/solve.hpp>
#include <bucket_moo/state_layout.hpp>

#include "launch.cuh"
#include "reduction_counters.cuh"
#include "solve.cuh"

namespace bucket_moo::cuda {
namespace {

/// Scratch of one problem: the solver's, then the state of the step's objectives.
__host__ __device__ std::size_t scratch_size(const Method& method, int k) {
  return solve_scratch_size(k) + state_size(method, k);
}

/// A problem of a batch: its part of each array.
struct Problem {
  int k;
  RandomKey key;
  const double* gramian;
  double* weights;
  double* scratch;
  double* state;  // or null
};

__device__ Problem problem_of(const SolveBatch& batch, double* shared) {
  const std::size_t problem = blockIdx.x;
  const std::size_t k = static_cast<std::size_t>(batch.k);
  return {
      .k = batch.k,
      .key = {batch.key.seed, batch.key.step, batch.key.bucket + problem},
      .gramian = batch.gramians + problem * k * k,
      .weights = batch.weights + problem * k,
      .scratch = batch.workspace == nullptr ? shared : batch.workspace + problem * scratch_size(batch.method, batch.k),
      .state = batch.states == nullptr ? nullptr : batch.states + problem * state_size(batch.method, batch.k),
  };
}

/// After an error the combination becomes NaN, so that nobody trains on without noticing. The host reports the error
/// later.
__device__ void refuse_step(const SolveStep& step) {
  for (int r = WarpLanes::lane(); r < step.world; r += WarpLanes::count()) {
    step.coefficients[r] = nan("");
  }
  if (WarpLanes::lane() == 0) {
    *step.result.header = *step.table.header;
    *step.result.solution = Solution{.status = Status::nonfinite};
  }
}

/// The state of a bucket, which outlives the step, by objective.
__device__ StateView<double> kept_state(const SolveStep& step) { return {step.state, step.capacity, step.slot}; }

/// The problem of a bucket, with the state of this step's objectives beside the solver's scratch.
__device__ Problem problem_of(const SolveStep& step, double* shared) {
  const StepHeader header = *step.table.header;
  double* const scratch = step.workspace == nullptr ? shared : step.workspace;
  double* const state = step.slot == nullptr ? nullptr : scratch + solve_scratch_size(header.k);
  const StateView<double> kept = kept_state(step);
  if (state != nullptr) {
    copy_state(WarpLanes{}, step.method, header.k, {kept.values, kept.size, kept.place}, {state, header.k, nullptr});
  }
  return {
      .k = header.k,
      .key = {step.seed, static_cast<std::uint64_t>(header.step), step.bucket},
      .gramian = step.result.gramian,
      .weights = step.result.weights,
      .scratch = scratch,
      .state = state,
  };
}

/// What a bucket's step keeps of its solve.
__device__ void finish_step(const SolveStep& step, const Problem& problem, const Solution& solution) {
  constexpr WarpLanes lanes;
  if (problem.state != nullptr) {
    copy_state(lanes, step.method, problem.k, {problem.state, problem.k, nullptr}, kept_state(step));
    double* const met = step.state + state_size(step.method, step.capacity);
    for (int i = lanes.lane(); i < problem.k; i += lanes.count()) met[step.slot[i]] = 1.0;
  }
  for (int r = lanes.lane(); r < step.world; r += lanes.count()) {
    step.coefficients[r] = step.result.weights[step.table.objective[r]] * step.table.share[r];
  }
  if (lanes.lane() == 0) {
    *step.result.header = *step.table.header;
    *step.result.solution = solution;
    if (step.counters != nullptr) count_reduction(*step.counters, solution);
  }
}

struct Arguments {
  bool in_step;
  SolveBatch batch;
  SolveStep step;
};

/// One block of one warp per problem: a problem's scratch is then the block's shared memory, and warps need no barrier.
/// One kernel per method, so that each has registers for itself alone; the solver is in it once, for batches and steps,
/// because it is what takes the compiler minutes.
template <class M>
__global__ void __launch_bounds__(kWarp, 1) solve_kernel(const Arguments arguments) {
  double* const shared = dynamic_shared<double>();
  const SolveBatch& batch = arguments.batch;
  const SolveStep& step = arguments.step;
  if (arguments.in_step && step.table.header->error != StepError::none) {
    refuse_step(step);
    return;
  }
  const Problem problem = arguments.in_step ? problem_of(step, shared) : problem_of(batch, shared);
  const Method& method = arguments.in_step ? step.method : batch.method;
  const Solution solution = solve_one<M>(WarpLanes{}, method, problem.key, problem.k, problem.gramian, problem.weights,
                                         problem.scratch, problem.state);
  if (arguments.in_step) {
    finish_step(step, problem, solution);
  } else if (batch.solutions != nullptr && WarpLanes::lane() == 0) {
    batch.solutions[blockIdx.x] = solution;
  }
}

using SolveKernel = void (*)(Arguments);

template <class... Each>
SolveKernel kernel_of(MethodList<Each...>, MethodId id) {
  constexpr SolveKernel kernels[] = {solve_kernel<Each>...};  // the place of a method in the list is its id
  const int place = static_cast<int>(id);
  return place >= 0 && place < kMethods ? kernels[place] : nullptr;
}

bool in_range(int batch, int k) { return batch >= 0 && k >= 1 && k <= kMaxObjectives; }

/// Whether a problem's scratch fits into the shared memory a block may ask for.
cudaError_t fits_shared(const Method& method, int k, bool* fits) {
  int device = 0;
  int available = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  *fits = scratch_size(method, k) * sizeof(double) <= static_cast<std::size_t>(available);
  return status;
}

cudaError_t launch_kernel(const Arguments& arguments, const Method& method, int batch, int k, bool has_workspace,
                          cudaStream_t stream) {
  const SolveKernel kernel = kernel_of(Methods{}, method.id);
  if (kernel == nullptr) return cudaErrorInvalidValue;
  std::size_t shared = 0;
  if (!has_workspace) {
    bool fits = false;
    const cudaError_t status = fits_shared(method, k, &fits);
    if (status != cudaSuccess) return status;
    if (!fits) return cudaErrorInvalidValue;
    shared = scratch_size(method, k) * sizeof(double);
  }
  return launch(kernel, {static_cast<unsigned>(batch), kWarp, shared}, stream, arguments);
}

}  // namespace

cudaError_t solve_workspace_size(const Method& method, int batch, int k, std::size_t* bytes) {
  if (!in_range(batch, k) || bytes == nullptr) return cudaErrorInvalidValue;
  bool fits = false;
  const cudaError_t status = fits_shared(method, k, &fits);
  *bytes = fits ? 0 : static_cast<std::size_t>(batch) * scratch_size(method, k) * sizeof(double);
  return status;
}

cudaError_t launch_solve(const SolveBatch& batch, cudaStream_t stream) {
  if (!in_range(batch.batch, batch.k)) return cudaErrorInvalidValue;
  if (batch.batch == 0) return cudaSuccess;
  if (batch.gramians == nullptr || batch.weights == nullptr) return cudaErrorInvalidValue;
  return launch_kernel({.in_step = false, .batch = batch, .step = {}}, batch.method, batch.batch, batch.k,
                       batch.workspace != nullptr, stream);
}

cudaError_t launch_solve(const SolveStep& step, cudaStream_t stream) {
  if (!in_range(1, step.k_bound) || step.world < 1) return cudaErrorInvalidValue;
  return launch_kernel({.in_step = true, .batch = {}, .step = step}, step.method, 1, step.k_bound,
                       step.workspace != nullptr, stream);
}

}  // namespace bucket_moo::cuda
