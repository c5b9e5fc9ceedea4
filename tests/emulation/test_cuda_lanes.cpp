// Reductions between the lanes of a warp: every lane ends with the same bits, which are those of one lane that has all
// the values.
#include <cuda_runtime.h>

#include <bit>
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/limits.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "checks.hpp"
#include "emulation.hpp"
#include "launch.cuh"

namespace {

using bucket_moo::kInfinity;
using bucket_moo::Located;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// What a lane ends with.
struct Ends {
  double least, largest;
  Located first;
};

/// As a solver goes about it.
template <class Lanes>
__host__ __device__ Ends reduce(Lanes lanes, const double* values, int count) {
  Ends ends{kInfinity, -kInfinity, {kInfinity, count}};
  for (int i = lanes.lane(); i < count; i += lanes.count()) {
    bucket_moo::Min{ends.least}.join(values[i]);
    bucket_moo::Max{ends.largest}.join(values[i]);
    const Located candidate{values[i], i};
    if (bucket_moo::comes_before(candidate, ends.first)) ends.first = candidate;
  }
  lanes.reduce(bucket_moo::Min{ends.least}, bucket_moo::Max{ends.largest}, bucket_moo::First{ends.first});
  return ends;
}

__global__ void reduce_in_warp(const double* values, int count, Ends* ends) {
  ends[threadIdx.x] = reduce(bucket_moo::WarpLanes(count), values, count);
}

bool same_bits(double a, double b) { return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b); }

/// The expected ends, from the numbers in order of size.
void check(const std::vector<double>& values, double least, double largest, double first, int index) {
  const int count = static_cast<int>(values.size());
  std::vector<Ends> ends(32);
  CHECK(bucket_moo::cuda::launch(reduce_in_warp, {1, 32}, nullptr, values.data(), count, ends.data()) == cudaSuccess);
  ends.push_back(reduce(bucket_moo::HostLanes{}, values.data(), count));
  for (std::size_t lane = 0; lane < ends.size(); ++lane) {
    checks::context = std::to_string(count) + " values, lane " + std::to_string(lane);
    CHECK(same_bits(ends[lane].least, least));
    CHECK(same_bits(ends[lane].largest, largest));
    CHECK(same_bits(ends[lane].first.value, first) && ends[lane].first.index == index);
  }
  checks::context.clear();
}

}  // namespace

int main() {
  for (const bool reverse : {false, true}) {
    bucket_moo::emulation::set_reverse_order(reverse);
    for (const int count : {1, 2, 3, 7, 8, 31, 32, 40, 64}) {
      // A zero of the other sign, and a NaN, in every place.
      for (int place = 0; place < count; ++place) {
        const auto at = static_cast<std::size_t>(place);
        for (const double zero : {0.0, -0.0}) {
          std::vector<double> values(static_cast<std::size_t>(count), zero);
          values[at] = -zero;
          const double upper = count == 1 ? -zero : 0.0;
          check(values, count == 1 ? -zero : -0.0, upper, values[0], 0);
        }
        std::vector<double> values;
        for (int i = 0; i < count; ++i) values.push_back(std::sin(1.0 + i));
        values[at] = kNan;
        double least = kInfinity;
        double largest = -kInfinity;
        int index = count;
        for (int i = 0; i < count; ++i) {
          const double value = values[static_cast<std::size_t>(i)];
          if (std::isnan(value)) continue;
          if (value < least) index = i;
          least = std::fmin(value, least);
          largest = std::fmax(value, largest);
        }
        check(values, least, largest, least, index);
      }
    }
  }
  return checks::finish();
}
