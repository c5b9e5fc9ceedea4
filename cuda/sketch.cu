// Sketch of a row in device memory, in two stages: every block adds up its part of the runs, then the parts are added.
//
// Column c of a run gets the element whose place is c XOR the run's flip. So a thread that owns the columns of one
// aligned vector reads one aligned vector of every run, whose elements only change places among themselves; and the 32
// vectors of a warp are side by side, if in another order.
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "elements.cuh"
#include "launch.cuh"
#include "sketch.cuh"

namespace bucket_moo::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kResident = 4;      // blocks a multiprocessor holds at least, and gets where there is work for them
constexpr int kInFlight = 4;      // vectors read before the first of them is used
constexpr int kMinSections = 16;  // least sections of a block: its sums are little beside what it reads

constexpr int kFinishThreads = 256;
constexpr int kFinishWarps = kFinishThreads / kWarp;

// A float64 element is loaded as two words, like two float32 elements.
template <DType D>
constexpr bool kIsDouble = D == DType::float64;
template <DType D>
constexpr DType kLoadedAs = kIsDouble<D> ? DType::float32 : D;
template <DType D>
constexpr int kLoadedPerElement = kIsDouble<D> ? 2 : 1;

/// Elements of a vector.
template <DType D>
constexpr int kElements = kPerVector<kLoadedAs<D>> / kLoadedPerElement<D>;
/// Elements that the threads of a block, or of a warp, read side by side.
template <DType D>
constexpr int kTile = kThreads * kElements<D>;
template <DType D>
constexpr int kWindow = kWarp * kElements<D>;
/// Words of signs that a window needs, and windows that a warp can read with one word a lane.
template <DType D>
constexpr int kWords = kWindow<D> / SketchMap::kSignsPerWord;
template <DType D>
constexpr int kBatch = kWarp / kWords<D>;

template <DType D>
using Sum = std::conditional_t<kIsDouble<D>, double, float>;

struct SketchPass {
  const void* row;
  std::int64_t size;
  std::int64_t width;  ///< p
  int log_width;
  bool aligned;                 ///< the row can be read 16 bytes at a time
  RandomKey key;                ///< its step is the header's if there is a table
  const RandomKey* device_key;  ///< in its place; nullptr: that
  ObjectiveTable table;
  int rank;
  int tiles;      ///< of a section
  int groups;     ///< of sections: what a block adds up
  void* partial;  ///< [groups, p] sums of the groups
};

/// The row is read in sections: of one run each or, if runs are short, of as many as a block reads side by side.
template <DType D>
BUCKET_MOO_HD constexpr std::int64_t section_of(std::int64_t width) {
  return width > kTile<D> ? width : kTile<D>;
}

/// What the sketch is multiplied by. 0: the row must not be read.
__device__ double factor_of(const SketchPass& pass) {
  if (pass.table.header == nullptr) return 1.0;
  return pass.table.header->error == StepError::none ? pass.table.share[pass.rank] : 0.0;
}

/// The elements from `at` on, of a row and an index that are 16-byte aligned.
template <DType D>
__device__ Vector load_whole(const void* row, std::int64_t at) {
  return load_vector<kLoadedAs<D>>(row, at * kLoadedPerElement<D>);
}

/// The same for any alignment, and with zeros from the end of the row on.
template <DType D>
__device__ Vector load_any(const SketchPass& pass, std::int64_t at) {
  if (pass.aligned && at + kElements<D> <= pass.size) return load_whole<D>(pass.row, at);
  return load_elements<kLoadedAs<D>>(pass.row, at * kLoadedPerElement<D>, pass.size * kLoadedPerElement<D>);
}

template <DType D>
__device__ Sum<D> element_of(const Vector& vector, int e) {
  if constexpr (kIsDouble<D>) {
    return __hiloint2double(static_cast<int>(vector.word[2 * e + 1]), static_cast<int>(vector.word[2 * e]));
  } else {
    return value_of<D>(vector, e);
  }
}

/// Negates the elements whose bits are set; there must be no bits beyond them. A multiplication takes the bits of a
/// word's elements to where the signs are.
template <DType D>
__device__ void negate(Vector& vector, std::uint32_t bits) {
  constexpr std::uint32_t kSigns = ~Element<kLoadedAs<D>>::kMagnitude;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if (kIsDouble<D> && w % 2 == 0) continue;  // the sign is in the other word
    const int first = w * kElements<D> / 4;
    const std::uint32_t factor = (kElements<D> == 8 ? 0x40008000u : 0x80000000u) >> first;
    vector.word[w] ^= (bits * factor) & kSigns;
  }
}

__device__ inline void swap_if(bool swap, std::uint32_t& a, std::uint32_t& b) {
  const std::uint32_t old = a;
  a = swap ? b : a;
  b = swap ? old : b;
}

/// Element e becomes what element e ^ flip was; only the bits of `flip` that number the elements count.
template <DType D>
__device__ void permute(Vector& vector, int flip) {
  std::uint32_t (&word)[4] = vector.word;
  if constexpr (kElements<D> == 8) {
#pragma unroll
    for (int w = 0; w < 4; ++w) word[w] = __funnelshift_l(word[w], word[w], (flip & 1) * 16);
  }
  if constexpr (kElements<D> >= 4) {
    const bool swap = (flip & (kElements<D> / 4)) != 0;
    swap_if(swap, word[0], word[1]);
    swap_if(swap, word[2], word[3]);
  }
  const bool swap = (flip & (kElements<D> / 2)) != 0;
  swap_if(swap, word[0], word[2]);
  swap_if(swap, word[1], word[3]);
}

template <DType D>
struct SketchShared {
  SketchMap map;
  Sum<D> total[kTile<D>];
};

/// What a block adds up: one tile of every section of a group.
template <DType D>
class PartialSketch {
 public:
  __device__ PartialSketch(const SketchPass& pass, const SketchMap& map)
      : pass_(pass),
        map_(map),
        section_(section_of<D>(pass.width)),
        lane_(static_cast<int>(threadIdx.x) % kWarp),
        place_((static_cast<int>(blockIdx.x) % pass.tiles * kThreads + static_cast<int>(threadIdx.x)) * kElements<D>),
        log_runs_(kLogWindow > pass.log_width ? kLogWindow - pass.log_width : 0) {}

  __device__ void add_group() {
    const std::int64_t sections = (pass_.size + section_ - 1) / section_;
    const int group = static_cast<int>(blockIdx.x) / pass_.tiles;
    const std::int64_t last = (group + 1) * sections / pass_.groups;
#pragma unroll 1
    for (std::int64_t first = group * sections / pass_.groups; first < last; first += kBatch<D>) {
      add_batch(first, static_cast<int>(last - first < kBatch<D> ? last - first : kBatch<D>));
    }
  }

  /// Sums of elements by their columns' place in a section, for all threads of the block.
  __device__ void store(Sum<D>* total) const {
#pragma unroll
    for (int e = 0; e < kElements<D>; ++e) total[static_cast<int>(threadIdx.x) * kElements<D> + e] = total_[e];
  }

 private:
  static constexpr int kLogWindow = kElements<D> == 8 ? 8 : kElements<D> == 4 ? 7 : 6;
  static_assert(1 << kLogWindow == kWindow<D>);

  /// Adds the sections from `first` on, `count` of them. Every lane draws one flip and one word of signs for all.
  __device__ void add_batch(std::int64_t first, int count) {
    const int window = place_ & ~(kWindow<D> - 1);
    const std::int64_t runs = section_ >> pass_.log_width;  // of a section
    const std::int64_t run =
        (first + (lane_ >> log_runs_)) * runs + (window >> pass_.log_width) + (lane_ & ((1 << log_runs_) - 1));
    flip_ = static_cast<int>(map_.flip(run));
    // A flip takes a window to a window, or stays inside it if the window has whole runs.
    const int section = lane_ / kWords<D>;
    const int source = window ^ (__shfl_sync(kAllLanes, flip_, section << log_runs_) & ~(kWindow<D> - 1));
    const std::int64_t begin = (first + section) * section_ + source;
    signs_ = map_.signs(begin / SketchMap::kSignsPerWord + lane_ % kWords<D>);

    Sum<D> sum[kElements<D>] = {};
    std::int64_t at = first * section_;
#pragma unroll 1
    for (int s = 0; s < count; s += kInFlight) {
      if (pass_.aligned && s + kInFlight <= count && at + kInFlight * section_ <= pass_.size) {
        Vector vector[kInFlight];
#pragma unroll
        for (int g = 0; g < kInFlight; ++g, at += section_) {
          vector[g] = load_whole<D>(pass_.row, at + source_of(flip_of(s + g)));
        }
#pragma unroll
        for (int g = 0; g < kInFlight; ++g) add(vector[g], s + g, sum);
      } else {
#pragma unroll 1
        for (int g = s; g < s + kInFlight && g < count; ++g, at += section_) {
          add(load_any<D>(pass_, at + source_of(flip_of(g))), g, sum);
        }
      }
    }
#pragma unroll
    for (int e = 0; e < kElements<D>; ++e) total_[e] += sum[e];
  }

  /// The flip of the run that this thread reads in a section of the batch.
  __device__ int flip_of(int section) const {
    const int run = lane_ * kElements<D> >> pass_.log_width;  // among those of the warp
    return __shfl_sync(kAllLanes, flip_, (section << log_runs_) + run);
  }

  /// Where in the section the vector for this thread's columns is.
  __device__ int source_of(int flip) const { return place_ ^ (flip & ~(kElements<D> - 1)); }

  /// Adds what was loaded of a section of the batch.
  __device__ void add(Vector vector, int section, Sum<D> (&sum)[kElements<D>]) const {
    const int flip = flip_of(section);
    const auto source = static_cast<unsigned>(source_of(flip));
    const auto word = static_cast<int>(source / SketchMap::kSignsPerWord % kWords<D>);
    const std::uint64_t signs = __shfl_sync(kAllLanes, signs_, section * kWords<D> + word);
    const auto bits = static_cast<std::uint32_t>(signs >> (source % SketchMap::kSignsPerWord));
    negate<D>(vector, bits & ((1u << kElements<D>)-1u));
    permute<D>(vector, flip);
#pragma unroll
    for (int e = 0; e < kElements<D>; ++e) sum[e] += element_of<D>(vector, e);
  }

  const SketchPass& pass_;
  const SketchMap& map_;
  std::int64_t section_;  ///< elements
  int lane_;
  int place_;     ///< of the thread's columns in a section
  int log_runs_;  ///< of the runs that a warp reads side by side
  int flip_ = 0;
  std::uint64_t signs_ = 0;
  Sum<D> total_[kElements<D>] = {};
};

template <DType D>
__global__ void __launch_bounds__(kThreads, kResident) sum_runs(const __grid_constant__ SketchPass pass) {
  if (factor_of(pass) == 0.0) return;
  SketchShared<D>& shared = *dynamic_shared<SketchShared<D>>();
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    RandomKey key = pass.device_key != nullptr ? *pass.device_key : pass.key;
    if (pass.table.header != nullptr) key.step = static_cast<std::uint64_t>(pass.table.header->step);
    shared.map = SketchMap(key, pass.width);
  }
  __syncthreads();
  PartialSketch<D> sketch(pass, shared.map);
  sketch.add_group();
  sketch.store(shared.total);
  __syncthreads();
  const int columns = pass.width < kTile<D> ? static_cast<int>(pass.width) : kTile<D>;
  const std::int64_t row = static_cast<int>(blockIdx.x) / pass.tiles * pass.width;
  Sum<D>* const partial =
      static_cast<Sum<D>*>(pass.partial) + row + static_cast<int>(blockIdx.x) % pass.tiles * kTile<D>;
  for (int c = thread; c < columns; c += kThreads) {
    double sum = 0.0;
    for (int t = c; t < kTile<D>; t += columns) sum += static_cast<double>(shared.total[t]);
    partial[c] = static_cast<Sum<D>>(sum);
  }
}

/// A lane a column. The warps share the groups, always in the same way, and then the rows that are written.
template <class T>
__global__ void __launch_bounds__(kFinishThreads)
    finish_sketch(const __grid_constant__ SketchPass pass, const int rows, T* __restrict__ out) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarp + lane;
  const double factor = factor_of(pass);
  double sum = 0.0;
  if (factor != 0.0) {
    const T* const partial = static_cast<const T*>(pass.partial) + column;
#pragma unroll 8
    for (int g = warp; g < pass.groups; g += kFinishWarps) sum += static_cast<double>(partial[g * pass.width]);
  }
  double* const sums = dynamic_shared<double>();  // [kFinishWarps, kWarp]
  sums[threadIdx.x] = sum;
  __syncthreads();
  double total = 0.0;
#pragma unroll
  for (int w = 0; w < kFinishWarps; ++w) total += sums[w * kWarp + lane];
  // After an error the table's objectives may be anything.
  const int own = factor == 0.0 ? -1 : pass.table.header == nullptr ? 0 : pass.table.objective[pass.rank];
  for (int r = warp; r < rows; r += kFinishWarps) {
    out[r * pass.width + column] = r == own ? static_cast<T>(factor * total) : T{0};
  }
}

using Kernel = void (*)(SketchPass);

/// The kernel of a type, and how the row is laid out for it.
struct Plan {
  Kernel kernel;
  std::size_t shared;
  std::size_t bytes;  ///< of the sum of a column
  int tile;
  std::int64_t section;
};

template <DType D>
Plan plan_of(std::int64_t width) {
  return {sum_runs<D>, sizeof(SketchShared<D>), sizeof(Sum<D>), kTile<D>, section_of<D>(width)};
}

Plan plan_of(DType dtype, std::int64_t width) {
  switch (dtype) {
    case DType::float64:
      return plan_of<DType::float64>(width);
    case DType::float32:
      return plan_of<DType::float32>(width);
    case DType::bfloat16:
      return plan_of<DType::bfloat16>(width);
    default:
      return plan_of<DType::float16>(width);
  }
}

bool valid(std::int64_t size, DType dtype, std::int64_t width) {
  return size >= 0 && element_bytes(dtype) != 0 && is_sketch_width(width);
}

bool valid(const SketchArguments& arguments) {
  if (!valid(arguments.size, arguments.dtype, arguments.width)) return false;
  if (arguments.out == nullptr || arguments.rows < 1) return false;
  if (arguments.size > 0 && (arguments.row == nullptr || arguments.workspace == nullptr)) return false;
  const ObjectiveTable& table = arguments.table;
  if (table.header == nullptr) return arguments.rows == 1;
  if (arguments.key != nullptr) return false;  // the step is the table's
  return arguments.rank >= 0 && table.objective != nullptr && table.share != nullptr;
}

/// How many blocks share the sections of a tile; 0: the row is empty.
cudaError_t choose_groups(std::int64_t size, const Plan& plan, int* groups) {
  int count = 0;
  const cudaError_t status = multiprocessor_count(&count);
  if (status != cudaSuccess) return status;
  const std::int64_t sections = (size + plan.section - 1) / plan.section;
  const std::int64_t tiles = plan.section / plan.tile;
  const std::int64_t resident = static_cast<std::int64_t>(count) * kResident / tiles;
  const std::int64_t long_enough = sections / kMinSections;
  const std::int64_t most = resident < long_enough ? resident : long_enough;
  *groups = static_cast<int>(sections == 0 ? 0 : most < 1 ? 1 : most);
  return cudaSuccess;
}

}  // namespace

cudaError_t sketch_workspace_size(std::int64_t size, DType dtype, std::int64_t width, std::size_t* bytes) {
  if (!valid(size, dtype, width) || bytes == nullptr) return cudaErrorInvalidValue;
  const Plan plan = plan_of(dtype, width);
  int groups = 0;
  const cudaError_t status = choose_groups(size, plan, &groups);
  if (status != cudaSuccess) return status;
  *bytes = static_cast<std::size_t>(groups) * static_cast<std::size_t>(width) * plan.bytes;
  return cudaSuccess;
}

cudaError_t launch_sketch(const SketchArguments& arguments, cudaStream_t stream) {
  if (!valid(arguments)) return cudaErrorInvalidValue;
  const Plan plan = plan_of(arguments.dtype, arguments.width);
  SketchPass pass = {};
  pass.row = arguments.row;
  pass.size = arguments.size;
  pass.width = arguments.width;
  while (std::int64_t{1} << pass.log_width < arguments.width) ++pass.log_width;
  pass.aligned = reinterpret_cast<std::uintptr_t>(arguments.row) % kVectorBytes == 0;
  pass.key = {arguments.seed, arguments.step, arguments.bucket};
  pass.device_key = arguments.key;
  pass.table = arguments.table;
  pass.rank = arguments.rank;
  pass.tiles = static_cast<int>(plan.section / plan.tile);
  pass.partial = arguments.workspace;
  cudaError_t status = choose_groups(arguments.size, plan, &pass.groups);
  if (status != cudaSuccess) return status;
  if (pass.groups > 0) {
    const auto blocks = static_cast<unsigned>(pass.groups) * static_cast<unsigned>(pass.tiles);
    status = launch(plan.kernel, {blocks, kThreads, plan.shared}, stream, pass);
    if (status != cudaSuccess) return status;
  }
  const LaunchShape shape{static_cast<unsigned>(arguments.width / kWarp), kFinishThreads,
                          kFinishThreads * sizeof(double)};
  if (arguments.dtype == DType::float64) {
    return launch(finish_sketch<double>, shape, stream, pass, arguments.rows, static_cast<double*>(arguments.out));
  }
  return launch(finish_sketch<float>, shape, stream, pass, arguments.rows, static_cast<float*>(arguments.out));
}

}  // namespace bucket_moo::cuda
