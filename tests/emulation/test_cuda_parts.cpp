// Parts of a bucket that have weights of their own: their Gramians, the problems that they join, the solves of these
// and the sums by their weights, against plain loops.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <bucket_moo/hash.hpp>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/packed_triangle.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "checks.hpp"
#include "emulation.hpp"
#include "parts.cuh"

namespace {

namespace cuda = bucket_moo::cuda;
using bucket_moo::DType;
using bucket_moo::packed_index;
using bucket_moo::packed_size;
using bucket_moo::Status;
using bucket_moo::StepError;
using bucket_moo::StepHeader;
using bucket_moo::StepRecord;

constexpr int kRoom = 16;  // problems of a group at most, as supports.hpp has it

std::string name_of(int objective) { return "objective " + std::to_string(objective); }

/// Objectives of a step, a row each; the last row, of a sum that does not count, is NaN.
struct Sums {
  Sums(int k, DType type, std::int64_t size, std::mt19937& random)
      : k(k),
        size(size),
        dtype(type),
        values(static_cast<std::size_t>((k + 1) * size)),
        narrow(values.size()),
        objective(static_cast<std::size_t>(k) + 1),
        leader(objective),
        begin(static_cast<std::size_t>(k) + 2),
        member(objective),
        share(static_cast<std::size_t>(k) + 1),
        record(static_cast<std::size_t>(k)) {
    header.k = k;
    header.step = 12;
    std::normal_distribution<double> normal;
    for (int i = 0; i <= k; ++i) {
      for (std::int64_t e = 0; e < size; ++e) {
        at(i, e) = i < k ? static_cast<float>(normal(random)) : std::numeric_limits<double>::quiet_NaN();
      }
    }
    for (int i = 0; i < k; ++i) {
      share[static_cast<std::size_t>(i)] = std::ldexp(1.0, i % 3 - 1);
      objective[static_cast<std::size_t>(i)] = leader[static_cast<std::size_t>(i)] = i;
      member[static_cast<std::size_t>(i)] = i;
      begin[static_cast<std::size_t>(i) + 1] = i + 1;
      std::strcpy(record[static_cast<std::size_t>(i)].objective.text(), name_of(i).c_str());
    }
  }

  double& at(int i, std::int64_t e) { return values[static_cast<std::size_t>(i * size + e)]; }

  cuda::DeviceRows rows() {
    std::copy(values.begin(), values.end(), narrow.begin());
    cuda::DeviceRows rows;
    rows.base = dtype == DType::float64 ? static_cast<void*>(values.data()) : narrow.data();
    rows.pitch = size * (dtype == DType::float64 ? 8 : 4);
    rows.count = k + 1;
    rows.size = size;
    rows.dtype = dtype;
    return rows;
  }
  bucket_moo::ObjectiveTable table() {
    return {&header, leader.data(), objective.data(), share.data(), begin.data(), member.data()};
  }
  bucket_moo::StepSums sums() { return {&header, record.data(), nullptr, nullptr, nullptr}; }

  int k;
  std::int64_t size;
  DType dtype;
  StepHeader header;
  std::vector<double> values;
  std::vector<float> narrow;
  std::vector<int> objective, leader, begin, member;
  std::vector<double> share;
  std::vector<StepRecord> record;
};

/// Consecutive parts of odd sizes with gaps between some, cut into pieces; some have no element here.
struct Parts {
  Parts(int count, std::int64_t size, std::mt19937& random) : count(count), ranges(static_cast<std::size_t>(count)) {
    std::vector<std::int64_t> cuts;
    for (int i = 0; i < 2 * count; ++i) cuts.push_back(static_cast<std::int64_t>(random()) % (size + 1));
    std::sort(cuts.begin(), cuts.end());
    std::vector<cuda::PartPiece> gaps;
    std::int64_t end = 0;
    for (int p = 0; p < count; ++p) {
      const bool follows = p % 2 == 1;
      auto& [first, last] = ranges[static_cast<std::size_t>(p)];
      first = follows ? end : cuts[static_cast<std::size_t>(2 * p)];
      last = p % 5 == 4 ? first : cuts[static_cast<std::size_t>(2 * p + 1)];
      if (first > end) gaps.push_back({end, static_cast<std::int32_t>(first - end), -1});
      end = last;
    }
    if (end < size) gaps.push_back({end, static_cast<std::int32_t>(size - end), -1});
    for (int p = 0; p < count; ++p) {
      first.push_back(static_cast<int>(pieces.size()));
      const auto [from, to] = ranges[static_cast<std::size_t>(p)];
      const std::int64_t step = 1 + static_cast<std::int64_t>(random()) % 700;
      for (std::int64_t at = from; at < to; at += step) {
        pieces.push_back({at, static_cast<std::int32_t>(std::min(step, to - at)), p});
      }
    }
    first.push_back(static_cast<int>(pieces.size()));
    pieces.insert(pieces.end(), gaps.begin(), gaps.end());
  }
  cuda::PartPieces pointers() const {
    return {pieces.data(), first.data(), static_cast<int>(pieces.size()), first.back(), count};
  }

  int count;
  std::vector<std::pair<std::int64_t, std::int64_t>> ranges;
  std::vector<cuda::PartPiece> pieces;
  std::vector<int> first;
};

/// [parts, stride]
std::vector<double> gramians_of(Sums& sums, const Parts& parts, std::int64_t stride) {
  std::vector<double> packed(static_cast<std::size_t>(parts.count * stride), -7.0);
  std::vector<std::byte> workspace(cuda::part_workspace_size(parts.pointers().in_parts, sums.k) + 16);
  CHECK(cuda::launch_part_gramians(sums.rows(), sums.table(), parts.pointers(), workspace.data(),
                                   {packed.data(), stride}, nullptr) == cudaSuccess);
  return packed;
}

double product(Sums& sums, const std::pair<std::int64_t, std::int64_t>& range, int i, int j, double* size) {
  long double sum = 0.0L, absolute = 0.0L;
  for (std::int64_t e = range.first; e < range.second; ++e) {
    const long double term = static_cast<long double>(sums.at(i, e)) * sums.at(j, e);
    sum += term;
    absolute += std::abs(term);
  }
  const double scale = sums.share[static_cast<std::size_t>(i)] * sums.share[static_cast<std::size_t>(j)];
  *size = static_cast<double>(absolute) * scale;
  return static_cast<double>(sum) * scale;
}

void gramians(int k, DType dtype, int count, std::int64_t size, unsigned seed) {
  checks::context = "K " + std::to_string(k) + ", " + std::to_string(count) + " parts of " + std::to_string(size);
  std::mt19937 random(seed);
  Sums sums(k, dtype, size, random);
  const Parts parts(count, size, random);
  const std::int64_t stride = packed_size(k) + 3;
  const std::vector<double> packed = gramians_of(sums, parts, stride);
  const double tolerance = dtype == DType::float64 ? 1e-13 : 1e-6;
  for (int p = 0; p < count; ++p) {
    for (int i = 0; i < k; ++i) {
      for (int j = 0; j <= i; ++j) {
        double scale = 0.0;
        const double expected = product(sums, parts.ranges[static_cast<std::size_t>(p)], i, j, &scale);
        const double got = packed[static_cast<std::size_t>(p * stride + packed_index(i, j))];
        CHECK(std::abs(got - expected) <= tolerance * scale);
      }
    }
  }
}

/// A number too large for float32 products, one too small, an infinity: each in a part of its own.
void extreme_values() {
  checks::context = "extreme values";
  std::mt19937 random(3);
  Sums sums(2, DType::float32, 400, random);
  std::fill(sums.values.begin(), sums.values.end(), 0.0);
  sums.at(0, 3) = 1e30F;
  sums.at(1, 103) = 1e-42F;
  sums.at(0, 203) = std::numeric_limits<float>::infinity();
  Parts parts(1, 1, random);
  parts.count = 4;
  parts.pieces.clear();
  parts.first = {0, 1, 2, 3, 4};
  for (int p = 0; p < 4; ++p) parts.pieces.push_back({100 * p, 100, p});
  const std::vector<double> packed = gramians_of(sums, parts, 3);
  const double first = static_cast<double>(1e30F) * sums.share[0];
  const double second = static_cast<double>(1e-42F) * sums.share[1];
  CHECK(std::abs(packed[0] / (first * first) - 1.0) < 1e-12);
  CHECK(std::abs(packed[5] / (second * second) - 1.0) < 1e-12 && packed[3] == 0.0);
  CHECK(!std::isfinite(packed[6]) && packed[8] == 0.0);
  CHECK(packed[9] == 0.0 && packed[10] == 0.0 && packed[11] == 0.0);
}

/// Memory of the problems of some groups.
struct Problems {
  Problems(int groups, int each, int capacity)
      : begun(static_cast<std::size_t>(groups)),
        count(begun.size()),
        support(begun.size() * static_cast<std::size_t>(each)),
        key(support.size()),
        packed(support.size() * static_cast<std::size_t>(packed_size(capacity))),
        header(support.size()),
        solution(support.size()),
        gramian(support.size() * static_cast<std::size_t>(capacity * capacity)),
        weights(support.size() * static_cast<std::size_t>(capacity)),
        pointers{groups,       each,          capacity,
                 begun.data(), count.data(),  support.data(),
                 key.data(),   packed.data(), {header.data(), solution.data(), gramian.data(), weights.data()}} {}

  std::vector<std::int64_t> begun;
  std::vector<int> count;
  std::vector<std::uint64_t> support, key;
  std::vector<double> packed;
  std::vector<StepHeader> header;
  std::vector<bucket_moo::Solution> solution;
  std::vector<double> gramian, weights;
  cuda::PartProblems pointers;
};

/// Two buckets of a step, whose parts belong to three groups in turn and depend on random objectives; twice, for the
/// second step must know nothing of the first.
void placing(int k, int count, int kinds, bool by_support, unsigned seed) {
  checks::context = "placing, K " + std::to_string(k) + ", " + std::to_string(count) + " parts";
  std::mt19937 random(seed);
  constexpr int kGroups = 3;
  Problems problems(kGroups, kRoom, k + 1);
  std::vector<std::uint64_t> masks;
  for (int kind = 0; kind < kinds; ++kind) masks.push_back(random() & ((std::uint64_t{1} << k) - 1));
  const std::int64_t stride = packed_size(k) + 1;
  for (std::int64_t now = 1; now <= 2; ++now) {
    // By group and support.
    std::map<std::pair<int, std::uint64_t>, std::vector<double>> expected;
    std::map<int, std::vector<std::uint64_t>> known;
    for (int bucket = 0; bucket < 2; ++bucket) {
      std::vector<double> gramians(static_cast<std::size_t>(count * stride));
      std::vector<int> group, begin{0}, part;
      std::vector<std::uint64_t> hash, of_part(static_cast<std::size_t>(count));
      for (int g = bucket; g < kGroups; ++g) {  // the second has no part of the first group
        for (int p = g - bucket; p < count; p += kGroups - bucket) part.push_back(p);
        group.push_back(g);
        hash.push_back(1000u + static_cast<unsigned>(g));
        begin.push_back(static_cast<int>(part.size()));
      }
      for (std::size_t g = 0; g < group.size(); ++g) {
        for (int at = begin[g]; at < begin[g + 1]; ++at) {
          const int p = part[static_cast<std::size_t>(at)];
          const std::uint64_t depends = masks[random() % masks.size()];
          const std::uint64_t all = (std::uint64_t{1} << k) - 1;
          std::uint64_t mask = by_support ? depends : all;
          auto& of_group = known[group[g]];
          if (std::find(of_group.begin(), of_group.end(), mask) == of_group.end()) {
            if (of_group.size() + 1 >= kRoom) mask = all;
            if (std::find(of_group.begin(), of_group.end(), mask) == of_group.end()) of_group.push_back(mask);
          }
          of_part[static_cast<std::size_t>(p)] = mask;
          auto& sum = expected[{group[g], mask}];
          sum.resize(static_cast<std::size_t>(packed_size(k)));
          for (int i = 0; i < k; ++i) {
            for (int j = 0; j <= i; ++j) {
              const bool both = (depends >> i & depends >> j & 1u) != 0;
              const double entry = both ? static_cast<double>(1 + random() % 100) : 0.0;
              gramians[static_cast<std::size_t>(p * stride + packed_index(i, j))] = entry;
              sum[static_cast<std::size_t>(packed_index(i, j))] += entry;
            }
          }
        }
      }
      std::mt19937 unused(1);
      Sums sums(k, DType::float32, 1, unused);
      std::vector<std::uint64_t> support(static_cast<std::size_t>(count));
      std::vector<cuda::PartPlace> places(static_cast<std::size_t>(count));
      CHECK(cuda::launch_place_parts(
                sums.sums(), {gramians.data(), stride},
                {static_cast<int>(group.size()), group.data(), hash.data(), begin.data(), part.data()},
                problems.pointers, by_support, now, support.data(), places.data(), nullptr) == cudaSuccess);
      for (std::size_t g = 0; g < group.size(); ++g) {
        for (int at = begin[g]; at < begin[g + 1]; ++at) {
          const cuda::PartPlace& place = places[static_cast<std::size_t>(part[static_cast<std::size_t>(at)])];
          const auto problem = static_cast<std::size_t>(place.problem);
          CHECK(place.problem / kRoom == group[g]);
          CHECK(problems.support[problem] == of_part[static_cast<std::size_t>(part[static_cast<std::size_t>(at)])]);
          CHECK(place.weights == problems.weights.data() + place.problem * (k + 1));
          CHECK(place.solution == problems.solution.data() + place.problem);
          std::uint64_t key = hash[g];
          for (int i = 0; i < k; ++i) {
            if ((problems.support[problem] >> i & 1u) != 0) key += bucket_moo::hash_text(name_of(i).c_str());
          }
          CHECK(problems.key[problem] == key);
        }
      }
    }
    std::size_t found = 0;
    for (int g = 0; g < kGroups; ++g) {
      for (int i = 0; i < problems.count[static_cast<std::size_t>(g)]; ++i, ++found) {
        const auto problem = static_cast<std::size_t>(g * kRoom + i);
        const auto sum = expected.find({g, problems.support[problem]});
        CHECK(sum != expected.end());
        if (sum == expected.end()) continue;
        const double* const packed = problems.packed.data() + problem * static_cast<std::size_t>(packed_size(k + 1));
        CHECK(std::equal(sum->second.begin(), sum->second.end(), packed));
      }
    }
    CHECK(found == expected.size());
  }
}

/// Two problems of a group of two objectives, and one of another; what is not there is left alone.
void solving(bool scales) {
  checks::context = "solving";
  std::mt19937 random(2);
  Sums sums(2, DType::float32, 1, random);
  Problems problems(2, 3, 4);
  problems.begun = {5, 5};
  problems.count = {2, 1};
  const std::vector<std::vector<double>> gramians = {{4.0, 0.0, 1.0}, {9.0, 0.0, 0.0}, {1.0, 0.0, 4.0}};
  const std::vector<std::size_t> place = {0, 1, 3};
  for (std::size_t i = 0; i < 3; ++i) {
    std::copy(gramians[i].begin(), gramians[i].end(),
              problems.packed.begin() + static_cast<std::ptrdiff_t>(10 * place[i]));
  }
  problems.solution[2].iterations = 77;
  const std::vector<double> importance = {3.0, 1.0, 9.0, 9.0};
  cuda::SolveStep step;
  step.method.id = bucket_moo::MethodId::mgda;
  step.table = sums.table();
  step.world = 3;
  step.k_bound = 4;
  step.problems = problems.pointers;
  step.scales_to_mean = scales;
  step.importance = importance.data();
  CHECK(cuda::launch_solve(step, nullptr) == cudaSuccess);
  const auto weight = [&](std::size_t problem, std::size_t i) { return problems.weights[problem * 4 + i]; };
  const double share = scales ? 0.75 : 1.0;
  CHECK(std::abs(weight(0, 0) - 0.2) < 1e-12 && std::abs(weight(0, 1) - 0.8) < 1e-12);
  CHECK(std::abs(weight(1, 0) - share) < 1e-12 && weight(1, 1) == 0.0);
  CHECK(std::abs(weight(3, 0) - 0.8) < 1e-12 && std::abs(weight(3, 1) - 0.2) < 1e-12);
  CHECK(problems.header[3].k == 2 && problems.gramian[3 * 16 + 3] == 4.0);
  CHECK(problems.solution[2].iterations == 77 && problems.header[2].k == 0);

  problems.packed[0] = std::numeric_limits<double>::quiet_NaN();
  CHECK(cuda::launch_solve(step, nullptr) == cudaSuccess);
  CHECK(problems.solution[0].status == Status::nonfinite && weight(0, 0) == 0.5 && weight(0, 1) == 0.5);

  sums.header.error = StepError::other_call;
  CHECK(cuda::launch_solve(step, nullptr) == cudaSuccess);
  for (std::size_t problem = 0; problem < 6; ++problem) {
    CHECK(problems.header[problem].error == StepError::other_call);
  }
}

void combining(int k, DType dtype, DType out_dtype, int count, std::int64_t size, unsigned seed) {
  checks::context = "combining, K " + std::to_string(k) + ", " + std::to_string(count) + " parts";
  std::mt19937 random(seed);
  Sums sums(k, dtype, size, random);
  const Parts parts(count, size, random);
  std::vector<double> weights(static_cast<std::size_t>(count * k));
  std::vector<bucket_moo::Solution> solutions(static_cast<std::size_t>(count));
  std::vector<cuda::PartPlace> places;
  for (int p = 0; p < count; ++p) {
    for (int i = 0; i < k; ++i) {
      const double values[] = {0.0, 0.25, 1.5, p % 3 == 2 ? 1e-40 : 0.5};  // the last is for float64 sums
      weights[static_cast<std::size_t>(p * k + i)] = values[random() % 4];
    }
    places.push_back({weights.data() + p * k, &solutions[static_cast<std::size_t>(p)], p});
  }
  cuda::DeviceCounters counters;
  std::vector<double> coefficients(static_cast<std::size_t>(count * (k + 1)));
  const auto coefficients_of = [&](cuda::DeviceCounters* counted) {
    CHECK(cuda::launch_part_coefficients(sums.table(), k + 1, count, places.data(), counted, coefficients.data(),
                                         nullptr) == cudaSuccess);
  };
  coefficients_of(&counters);
  CHECK(counters.buckets == 1 && counters.nonfinite == 0);
  solutions.back().status = Status::nonfinite;
  coefficients_of(&counters);
  coefficients_of(nullptr);
  CHECK(counters.buckets == 2 && counters.nonfinite == 1);
  const std::size_t bytes = static_cast<std::size_t>(size) * (out_dtype == DType::float64 ? 8 : 4);
  std::vector<std::byte> out(bytes, std::byte{0x7f});
  CHECK(cuda::launch_combine_parts(sums.rows(), parts.pointers(), coefficients.data(), out.data(), out_dtype,
                                   nullptr) == cudaSuccess);
  const auto result = [&](std::int64_t e) {
    if (out_dtype == DType::float64) return reinterpret_cast<const double*>(out.data())[e];
    if (out_dtype == DType::float32) return static_cast<double>(reinterpret_cast<const float*>(out.data())[e]);
    const std::uint32_t bits = static_cast<std::uint32_t>(reinterpret_cast<const std::uint16_t*>(out.data())[e]) << 16;
    float value = 0.0F;
    std::memcpy(&value, &bits, sizeof(value));
    return static_cast<double>(value);
  };
  const double tolerance = out_dtype == DType::float64 ? 1e-15 : out_dtype == DType::float32 ? 1e-6 : 5e-3;
  std::vector<int> part(static_cast<std::size_t>(size), -1);
  for (int p = 0; p < count; ++p) {
    const auto [first, last] = parts.ranges[static_cast<std::size_t>(p)];
    for (std::int64_t e = first; e < last; ++e) part[static_cast<std::size_t>(e)] = p;
  }
  for (std::int64_t e = 0; e < size; ++e) {
    double expected = 0.0, scale = 0.0;
    for (int i = 0; part[static_cast<std::size_t>(e)] >= 0 && i < k; ++i) {
      const double term = weights[static_cast<std::size_t>(part[static_cast<std::size_t>(e)] * k + i)] *
                          sums.share[static_cast<std::size_t>(i)] * sums.at(i, e);
      expected += term;
      scale += std::abs(term);
    }
    CHECK(std::abs(result(e) - expected) <= tolerance * scale);
  }
  sums.header.error = StepError::other_call;
  coefficients_of(&counters);
  CHECK(counters.buckets == 2 && std::isnan(coefficients[0]) && std::isnan(coefficients.back()));
}

/// After an error nothing is written.
void errors() {
  checks::context = "errors";
  std::mt19937 random(9);
  Sums sums(3, DType::float32, 50, random);
  const Parts parts(4, 50, random);
  sums.header.error = StepError::other_call;
  sums.header.k = 0;
  const std::vector<double> packed = gramians_of(sums, parts, 6);
  CHECK(std::all_of(packed.begin(), packed.end(), [](double entry) { return entry == -7.0; }));
  CHECK(cuda::launch_part_gramians(sums.rows(), {}, parts.pointers(), nullptr, {}, nullptr) == cudaErrorInvalidValue);
  CHECK(cuda::launch_place_parts(sums.sums(), {}, {}, {}, true, 1, nullptr, nullptr, nullptr) == cudaErrorInvalidValue);
  CHECK(cuda::launch_combine_parts(sums.rows(), parts.pointers(), nullptr, nullptr, DType::float64, nullptr) ==
        cudaErrorInvalidValue);
  CHECK(cuda::launch_sum_part_gramians(&sums.header, 4, 3, nullptr, nullptr, nullptr, 0, 0, {nullptr, 2}, nullptr) ==
        cudaErrorInvalidValue);
}

void adding_up() {
  checks::context = "adding up";
  const int k = 3, parts = 2, world = 3;
  const std::int64_t stride = packed_size(k) + 2;
  StepHeader header;
  header.k = k;
  std::vector<double> own(static_cast<std::size_t>(parts * stride)), messages(own.size() * world);
  for (std::size_t i = 0; i < own.size(); ++i) own[i] = static_cast<double>(i);
  for (std::size_t i = 0; i < messages.size(); ++i) messages[i] = 100.0 * static_cast<double>(i);
  const std::vector<std::byte> second(std::vector<std::byte>{std::byte{0}, std::byte{1}});
  for (const double* const of_tail : {static_cast<const double*>(own.data()), static_cast<const double*>(nullptr)}) {
    for (const std::byte* const left_out : {second.data(), static_cast<const std::byte*>(nullptr)}) {
      std::vector<double> out(own.size(), -7.0);
      CHECK(cuda::launch_sum_part_gramians(&header, parts, k, of_tail, left_out,
                                           reinterpret_cast<const std::byte*>(messages.data()),
                                           static_cast<std::int64_t>(own.size() * sizeof(double)), world,
                                           {out.data(), stride}, nullptr) == cudaSuccess);
      for (std::int64_t p = 0; p < parts; ++p) {
        for (std::int64_t e = 0; e < stride; ++e) {
          const auto at = static_cast<std::size_t>(p * stride + e);
          double expected = of_tail != nullptr ? own[at] : 0.0;
          for (std::size_t r = 0; r < world; ++r) expected += messages[r * own.size() + at];
          if (left_out != nullptr && p == 1) expected = 0.0;
          CHECK(out[at] == (e < packed_size(k) ? expected : -7.0));
        }
      }
    }
  }
}

}  // namespace

int main() {
  for (const bool reverse : {false, true}) {
    bucket_moo::emulation::set_reverse_order(reverse);
    for (const int k : {1, 2, 5, 17, 63}) {
      const DType dtype = k % 2 == 0 ? DType::float64 : DType::float32;
      gramians(k, dtype, 7, 5003, 10u + static_cast<unsigned>(k));
      gramians(k, DType::float32, 1, 1200, 20u + static_cast<unsigned>(k));
    }
    gramians(3, DType::float64, 40, 3001, 1);
    extreme_values();
    placing(3, 7, 4, true, 1);
    placing(6, 100, 60, true, 2);  // more supports than there is room for
    placing(40, 300, 3, true, 3);
    placing(4, 9, 5, false, 4);
    solving(false);
    solving(true);
    combining(4, DType::float32, DType::float32, 7, 2003, 1);
    combining(3, DType::float64, DType::float64, 7, 1003, 2);
    combining(5, DType::float32, DType::bfloat16, 12, 1003, 3);
    combining(63, DType::float32, DType::float32, 2, 303, 4);
    errors();
    adding_up();
  }
  return checks::finish();
}
