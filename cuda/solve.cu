// Solves on the GPU: the core's solve() under the WarpLanes policy.
#include <cuda_runtime.h>

#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/method_list.hpp>
#include <bucket_moo/packed_triangle.hpp>
#include <bucket_moo/rescaling.hpp>
#include <bucket_moo/solve.hpp>
#include <bucket_moo/state_layout.hpp>
#include <bucket_moo/supports.hpp>

#include "bucket_gramian.cuh"
#include "kept_weights.cuh"
#include "launch.cuh"
#include "reduction_counters.cuh"
#include "solve.cuh"

namespace bucket_moo::cuda {
namespace {

/// Doubles of shared memory that a solve needs. All that the solver reads and writes is there, because a pointer that
/// might as well be to global memory makes every access a slow one.
__host__ __device__ constexpr std::size_t shared_size(const Method& method, int k) {
  return static_cast<std::size_t>(k) + state_size(method, k) + solve_scratch_size(method.id, k);
}

/// Threads of a block that solves for a step: all add up the Gramian, the first warp solves.
constexpr int kStepThreads = 256;

/// Elements of the longest tail that a solve of up to k objectives takes. A thread then forms at most 256 products,
/// which takes less than a launch (an estimate: some 10 cycles each).
constexpr int longest_tail(int k) {
  constexpr int kMostProducts = 256;
  return kMostProducts / ((packed_size(k) + kStepThreads - 1) / kStepThreads);
}

/// Doubles of shared memory that the solve of a step needs: first for the tail, then for the problem.
constexpr std::size_t step_size(const Method& method, int k, int tail) {
  const std::size_t problem = shared_size(method, k);
  const std::size_t gradients = tail_gradients(tail, k);
  return gradients > problem ? gradients : problem;
}

/// Whether every method has room for kMaxObjectives in 163 kB, which a block of an sm_80 may have.
constexpr bool fits_all() {
  for (int id = 0; id < kMethods; ++id) {
    const Method method{.id = static_cast<MethodId>(id), .smoothing = {.alpha = 0.5}};
    if (shared_size(method, kMaxObjectives) * sizeof(double) > 163 * 1024) return false;
  }
  return true;
}
static_assert(fits_all());

/// A problem in the block's shared memory.
struct Problem {
  int k;
  RandomKey key;
  double* weights;
  double* state;  // where the method has none: not used
  double* scratch;
  double* gramian;  // at the end of the scratch
};

__device__ Problem place_problem(const Method& method, int k, const RandomKey& key) {
  double* const weights = dynamic_shared<double>();
  double* const state = weights + k;
  double* const scratch = state + state_size(method, k);
  return {k, key, weights, state, scratch, scratch + gramian_in_scratch(method.id, k)};
}

__device__ void copy(std::size_t count, const double* from, double* to) {
  BUCKET_MOO_UNROLL(1)
  for (std::size_t i = WarpLanes::lane(); i < count; i += WarpLanes::count()) to[i] = from[i];
}

/// A fresh state, which is the same as none.
__device__ void clear_state(const Method& method, const Problem& problem) {
  const std::size_t state = state_size(method, problem.k);
  BUCKET_MOO_UNROLL(1)
  for (std::size_t i = WarpLanes::lane(); i < state; i += WarpLanes::count()) problem.state[i] = 0.0;
}

__device__ Problem load(const Method& method, const SolveBatch& batch) {
  const std::size_t at = blockIdx.x;
  const std::size_t entries = static_cast<std::size_t>(batch.k) * static_cast<std::size_t>(batch.k);
  const std::size_t state = state_size(method, batch.k);
  RandomKey key{batch.key.seed, batch.key.step, batch.key.bucket + at};
  if (batch.keys != nullptr) key = batch.keys[at];
  const Problem problem = place_problem(method, batch.k, key);
  copy(entries, batch.gramians + at * entries, problem.gramian);
  if (batch.states != nullptr) {
    copy(state, batch.states + at * state, problem.state);
  } else {
    clear_state(method, problem);
  }
  return problem;
}

__device__ void store(const Method& method, const SolveBatch& batch, const Problem& problem, Solution solution) {
  const std::size_t at = blockIdx.x;
  const std::size_t k = static_cast<std::size_t>(batch.k);
  if (rescales(method.length)) {
    rescale_weights(WarpLanes(batch.k), method.length, batch.k, batch.gramians + at * k * k, problem.weights,
                    &solution);
  }
  const std::size_t state = state_size(method, batch.k);
  copy(k, problem.weights, batch.weights + at * k);
  if (batch.states != nullptr) copy(state, problem.state, batch.states + at * state);
  if (batch.solutions != nullptr && WarpLanes::lane() == 0) batch.solutions[at] = solution;
}

/// The state of a bucket, which outlives the step, by objective.
__device__ StateView<double> kept_state(const SolveStep& step) { return {step.state, step.capacity, step.slot}; }

/// Where the results of the block's problem go.
__device__ BucketResult own_result(const SolveStep& step) {
  const std::int64_t at = blockIdx.x;
  const std::int64_t k = step.k_bound;
  const BucketResult& first = step.result;
  return {first.header + at, first.solution + at, first.gramian + at * k * k, first.weights + at * k};
}

__device__ bool exists(const SolveStep& step) {
  const int at = static_cast<int>(blockIdx.x);
  return step.count == nullptr || at % step.each < step.count[at / step.each];
}

/// The problem of a bucket, with the state of this step's objectives. By all threads of the block.
__device__ Problem load(const Method& method, const SolveStep& step) {
  const StepHeader header = *step.table.header;
  const std::uint64_t key = step.key == nullptr ? step.bucket : step.key[blockIdx.x];
  const Problem problem = place_problem(method, header.k, {step.seed, static_cast<std::uint64_t>(header.step), key});
  const int k = header.k;
  double* const gramian = own_result(step).gramian;
  GramianParts parts = step.gramian;
  parts.packed += static_cast<std::int64_t>(blockIdx.x) * packed_size(step.k_bound);  // of several they are there
  add_up_gramian<kStepThreads>(parts, step.table, k, dynamic_shared<double>(), [=](int i, int j, double entry) {
    gramian[i * k + j] = entry;
    gramian[j * k + i] = entry;
  });
  __syncthreads();  // the tail's gradients are no longer needed where the problem will be
  if (threadIdx.x >= kWarp) return problem;
  copy(static_cast<std::size_t>(k) * static_cast<std::size_t>(k), gramian, problem.gramian);
  if (step.slot != nullptr) {
    const StateView<double> kept = kept_state(step);
    copy_state(WarpLanes{}, method, header.k, {kept.values, kept.size, kept.place}, {problem.state, header.k, nullptr});
  } else {
    clear_state(method, problem);
  }
  return problem;
}

/// What a bucket's step keeps of its solve, and the coefficients of its combination.
__device__ void store(const Method& method, const SolveStep& step, const Problem& problem, Solution solution) {
  const WarpLanes lanes(problem.k);
  const BucketResult result = own_result(step);
  if (rescales(method.length)) {
    rescale_weights(lanes, method.length, problem.k, result.gramian, problem.weights, &solution);
  }
  if (step.scales_to_mean && solution.status != Status::nonfinite) {
    scale_to_mean(lanes, step.importance, problem.k, result.gramian, problem.weights);
  }
  if (step.slot != nullptr) {
    copy_state(lanes, method, problem.k, {problem.state, problem.k, nullptr}, kept_state(step));
    double* const met = step.state + state_size(method, step.capacity);
    BUCKET_MOO_UNROLL(1)
    for (int i = lanes.lane(); i < problem.k; i += lanes.count()) met[step.slot[i]] = 1.0;
  }
  copy(static_cast<std::size_t>(problem.k), problem.weights, result.weights);
  const int world = step.coefficients != nullptr ? step.world : 0;
  BUCKET_MOO_UNROLL(1)
  for (int r = lanes.lane(); r < world; r += lanes.count()) {
    step.coefficients[r] = problem.weights[step.table.objective[r]] * step.table.share[r];
  }
  if (lanes.lane() == 0) {
    *result.header = *step.table.header;
    *result.solution = solution;
    if (step.counters != nullptr) count_reduction(*step.counters, solution);
  }
  if (step.kept.header == nullptr) return;
  const bool is_first = step.kept.header->k == 0;
  lanes.sync();  // the result is complete, and the header not yet another
  if (is_first || solution.status != Status::nonfinite) copy_result<kWarp>(result, step.kept);
}

/// After an error the combination becomes NaN, so that nobody trains on without noticing. The host reports the error
/// later.
__device__ void refuse(const SolveStep& step) {
  const BucketResult result = own_result(step);
  const int world = step.coefficients != nullptr ? step.world : 0;
  BUCKET_MOO_UNROLL(1)
  for (int r = WarpLanes::lane(); r < world; r += WarpLanes::count()) {
    step.coefficients[r] = nan("");
  }
  if (WarpLanes::lane() == 0) {
    *result.header = *step.table.header;
    *result.solution = Solution{.status = Status::nonfinite};
  }
}

struct Arguments {
  bool in_step;
  SolveBatch batch;
  SolveStep step;
};

/// One warp solves a problem, so that nothing waits at a barrier of the block; other warps of a step's block have gone
/// by then. One kernel per method, so that each has registers for itself alone; the solver is in it once, for batches
/// and steps, because it is what takes the compiler minutes.
template <class M>
__global__ void __launch_bounds__(kStepThreads, 1) solve_kernel(const Arguments arguments) {
  const SolveBatch& batch = arguments.batch;
  const SolveStep& step = arguments.step;
  if (arguments.in_step && step.table.header->error != StepError::none) {
    if (threadIdx.x < kWarp) refuse(step);
    return;
  }
  if (arguments.in_step && !exists(step)) return;
  Method method = arguments.in_step ? step.method : batch.method;
  method.id = M::kId;  // as it is; now the compiler knows
  const Problem problem = arguments.in_step ? load(method, step) : load(method, batch);
  if (threadIdx.x >= kWarp) return;
  WarpLanes::sync();
  const Solution solution = solve_one<M>(WarpLanes(problem.k), method, problem.key, problem.k, problem.gramian,
                                         problem.weights, problem.scratch, problem.state);
  if (arguments.in_step) {
    store(method, step, problem, solution);
  } else {
    store(method, batch, problem, solution);
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

cudaError_t launch_kernel(const Arguments& arguments, const Method& method, LaunchShape shape, cudaStream_t stream) {
  const SolveKernel kernel = kernel_of(Methods{}, method.id);
  return kernel == nullptr ? cudaErrorInvalidValue : launch(kernel, shape, stream, arguments);
}

}  // namespace

cudaError_t solve_limit(const Method& method, int* k) {
  int device = 0;
  int available = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (status != cudaSuccess) return status;
  *k = kMaxObjectives;
  while (*k > 0 && shared_size(method, *k) * sizeof(double) > static_cast<std::size_t>(available)) --*k;
  return cudaSuccess;
}

bool solve_takes_tail(int k_bound, std::int64_t size) { return size <= longest_tail(k_bound); }

cudaError_t launch_solve(const SolveBatch& batch, cudaStream_t stream) {
  if (!in_range(batch.batch, batch.k)) return cudaErrorInvalidValue;
  if (batch.batch == 0) return cudaSuccess;
  if (batch.gramians == nullptr || batch.weights == nullptr) return cudaErrorInvalidValue;
  const LaunchShape shape{static_cast<unsigned>(batch.batch), kWarp,
                          shared_size(batch.method, batch.k) * sizeof(double)};
  return launch_kernel({.in_step = false, .batch = batch, .step = {}}, batch.method, shape, stream);
}

cudaError_t launch_solve(const SolveStep& step, cudaStream_t stream) {
  if (!in_range(1, step.k_bound) || step.world < 1 || step.problems < 1) return cudaErrorInvalidValue;
  const int tail = step.gramian.tail.size;
  if (!solve_takes_tail(step.k_bound, tail)) return cudaErrorInvalidValue;
  const LaunchShape shape{static_cast<unsigned>(step.problems), kStepThreads,
                          step_size(step.method, step.k_bound, tail) * sizeof(double)};
  return launch_kernel({.in_step = true, .batch = {}, .step = step}, step.method, shape, stream);
}

}  // namespace bucket_moo::cuda
