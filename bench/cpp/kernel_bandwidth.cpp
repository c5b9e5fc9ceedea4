// Memory bandwidth of the CPU kernels, beside a plain copy and a plain read.
//
// A tile of `megabytes` (default 25) holds K rows of megabytes / K each: once a multiple of 1024 elements, as kernels
// like it best, and once an odd number. The five measurements alternate within each repetition, so that what else the
// machine does hits all of them alike; printed are medians, and medians of the ratios.
//
//   kernel_bandwidth [megabytes] [repetitions] [variant]
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

#include "kernels/accumulate.hpp"
#include "kernels/isa/variant.hpp"

namespace {

using bucket_moo::DType;

/// Processor time of this thread where there is such a clock: on a shared machine the wall clock mostly shows the
/// others.
double seconds_now() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
#else
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
#endif
}

template <typename F>
double seconds_of(F&& f) {
  const double start = seconds_now();
  f();
  return seconds_now() - start;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::uint64_t sink = 0;

/// Reads memory and adds it up, in enough independent sums not to wait for the additions.
void read_sum(const std::vector<char>& memory, std::size_t bytes) {
  const char* p = memory.data();
  typedef std::uint64_t Vec __attribute__((vector_size(32)));
  Vec sum[8] = {};
  for (std::size_t i = 0; i + sizeof sum <= bytes; i += sizeof sum) {
    Vec x[8];
    std::memcpy(x, p + i, sizeof x);
    for (int j = 0; j < 8; ++j) sum[j] += x[j];
  }
  for (int j = 1; j < 8; ++j) sum[0] += sum[j];
  sink += sum[0][0] + sum[0][1] + sum[0][2] + sum[0][3];
}

struct Case {
  DType dtype;
  const char* name;
  std::uint32_t random_mask;  ///< keeps the elements finite and of ordinary size
  std::uint32_t random_set;
};

const Case kCases[] = {
    {DType::float32, "float32", 0x807fffffU, 0x3f000000U},
    {DType::bfloat16, "bfloat16", 0x807f807fU, 0x3f003f00U},
    {DType::float16, "float16", 0x83ff83ffU, 0x38003800U},
};

/// \param beyond  elements of a row beyond a multiple of 1024
void measure(const bucket_moo::isa::Variant& variant, const Case& c, int k, std::size_t beyond, std::size_t tile_bytes,
             int repetitions) {
  const std::size_t element = bucket_moo::element_size(c.dtype);
  const std::size_t length = tile_bytes / static_cast<std::size_t>(k) / element / 1024 * 1024 + beyond;
  const std::size_t row_bytes = length * element;
  const std::size_t bytes = row_bytes * static_cast<std::size_t>(k);
  std::vector<char> tile(bytes);
  std::vector<char> copy(bytes);
  std::vector<char> out(row_bytes);
  std::vector<char> sum(length * bucket_moo::element_size(bucket_moo::accumulation_dtype(c.dtype)));
  std::uint32_t state = 1;
  for (std::size_t i = 0; i + 4 <= bytes; i += 4) {
    state = state * 1664525U + 1013904223U;
    const std::uint32_t word = ((state ^ state >> 15) & c.random_mask) | c.random_set;
    std::memcpy(&tile[i], &word, 4);
  }
  std::vector<const void*> data;
  std::vector<int> objective;
  std::vector<double> share;
  std::vector<double> coefficient;
  for (int r = 0; r < k; ++r) {
    data.push_back(tile.data() + static_cast<std::size_t>(r) * row_bytes);
    objective.push_back(r);
    share.push_back(1.0);
    coefficient.push_back(1.0 / k);
  }
  const bucket_moo::Rows rows{data.data(), k, static_cast<std::int64_t>(length), c.dtype};
  const bucket_moo::ObjectiveMap map{objective.data(), share.data(), k};
  std::vector<double> g(static_cast<std::size_t>(k * k));

  std::vector<double> gramian, combine, accumulate, copied, read, gramian_ratio, combine_ratio, accumulate_ratio;
  for (int i = 0; i < repetitions + 1; ++i) {
    // Before each, the other buffer is written, so that no measurement finds its input in the last-level cache.
    const double t_read = (std::memset(copy.data(), i, bytes), seconds_of([&] { read_sum(tile, bytes); }));
    const double t_gramian =
        (std::memset(copy.data(), i, bytes), seconds_of([&] { variant.gramian(rows, map, g.data()); }));
    const double t_copy = seconds_of([&] { std::memcpy(copy.data(), tile.data(), bytes); });
    const double t_combine =
        (std::memset(copy.data(), i, bytes), seconds_of([&] {
           variant.combine(rows, coefficient.data(), bucket_moo::ZeroRows::skip, out.data(), c.dtype);
         }));
    const double t_accumulate =
        (std::memset(copy.data(), i, bytes), seconds_of([&] {
           variant.accumulate(rows, coefficient.data(), i == 0 ? 0.0 : 1.0, bucket_moo::ZeroRows::skip, sum.data());
         }));
    if (i == 0) continue;  // page faults
    const double size = static_cast<double>(bytes);
    gramian.push_back(size / t_gramian);
    combine.push_back((size + static_cast<double>(row_bytes)) / t_combine);
    accumulate.push_back((size + 2 * static_cast<double>(sum.size())) / t_accumulate);
    copied.push_back(2 * size / t_copy);
    read.push_back(size / t_read);
    gramian_ratio.push_back(t_read / t_gramian);
    combine_ratio.push_back(combine.back() / copied.back());
    accumulate_ratio.push_back(accumulate.back() / copied.back());
  }
  std::printf("%-9s %-9s %3d %9zu %9.1f %9.1f %9.1f %9.1f %11.1f %13.2f %15.2f %18.2f\n", variant.name, c.name, k,
              length, median(read) / 1e9, median(gramian) / 1e9, median(copied) / 1e9, median(combine) / 1e9,
              median(accumulate) / 1e9, median(gramian_ratio), median(combine_ratio), median(accumulate_ratio));
}

}  // namespace

int main(int argc, char** argv) {
  const double megabytes = argc > 1 ? std::atof(argv[1]) : 25;
  const int repetitions = argc > 2 ? std::atoi(argv[2]) : 21;
  const char* wanted = argc > 3 ? argv[3] : bucket_moo::isa::active_variant().name;
  const std::size_t bytes = static_cast<std::size_t>(megabytes * 1e6);
  std::printf("GB/s (memcpy, combine and accumulate: bytes read plus bytes written), tile of %.0f MB over all K rows\n",
              megabytes);
  std::printf("%-9s %-9s %3s %9s %9s %9s %9s %9s %11s %13s %15s %18s\n", "variant", "dtype", "K", "n", "read",
              "gramian", "memcpy", "combine", "accumulate", "gramian/read", "combine/memcpy", "accumulate/memcpy");
  int count = 0;
  const bucket_moo::isa::Variant* all = bucket_moo::isa::variants(&count);
  for (int v = 0; v < count; ++v) {
    if (!all[v].supported() || (std::strcmp(wanted, "all") != 0 && std::strcmp(wanted, all[v].name) != 0)) continue;
    for (const Case& c : kCases) {
      for (const int k : {2, 4, 8, 16, 32, 64}) {
        for (const std::size_t beyond : {std::size_t{0}, std::size_t{297}}) {
          measure(all[v], c, k, beyond, bytes, repetitions);
        }
      }
    }
  }
  return sink == 42 ? 1 : 0;
}
