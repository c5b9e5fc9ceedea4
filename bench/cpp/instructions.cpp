// Instructions of the kernels, the solvers and the collective, as valgrind counts them: `make bench` runs this.
//
// The same counts in every run of the same binary, whatever else the machine does: so a change of a percent shows. They
// say nothing of memory and caches.
//
//   valgrind --tool=callgrind --callgrind-out-file=FILE instructions    # writes FILE.1, FILE.2, ... one a case
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bucket_moo/lanes.hpp"
#include "bucket_moo/method_list.hpp"
#include "bucket_moo/solve.hpp"
#include "collective/moo_collective.hpp"
#include "kernels/accumulate.hpp"
#include "kernels/combine.hpp"
#include "kernels/gramian.hpp"
#include "kernels/sketch.hpp"
#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#else
#define RUNNING_ON_VALGRIND 0
#define CALLGRIND_ZERO_STATS
#define CALLGRIND_START_INSTRUMENTATION
#define CALLGRIND_STOP_INSTRUMENTATION
#define CALLGRIND_DUMP_STATS_AT(name) static_cast<void>(name)
#endif

namespace bm = bucket_moo;

namespace {

constexpr std::int64_t kElements = 1 << 17;  // of a row: the loops over them are nearly all that is counted

template <class Call>
void count(const std::string& name, Call&& call) {
  call();  // what is done once: choosing an instruction set, growing buffers
  CALLGRIND_START_INSTRUMENTATION;
  CALLGRIND_ZERO_STATS;
  call();
  CALLGRIND_DUMP_STATS_AT(name.c_str());
  CALLGRIND_STOP_INSTRUMENTATION;
  std::printf("%s\n", name.c_str());
}

/// K rows of numbers that are fine in every type.
class Jacobian {
 public:
  Jacobian(int k, bm::DType dtype) : k_(k), dtype_(dtype), bytes_(static_cast<std::size_t>(k)) {
    std::mt19937 random(static_cast<unsigned>(k));
    std::normal_distribution<float> normal;
    for (auto& row : bytes_) {
      row.resize(static_cast<std::size_t>(kElements) * bm::element_size(dtype));
      for (std::int64_t i = 0; i < kElements; ++i) {
        const float value = normal(random);
        std::uint32_t bits = 0;
        std::memcpy(&bits, &value, sizeof(bits));
        const auto upper = static_cast<std::uint16_t>(bits >> 16);
        std::byte* const at = row.data() + static_cast<std::size_t>(i) * bm::element_size(dtype);
        if (dtype == bm::DType::bfloat16) {
          std::memcpy(at, &upper, sizeof(upper));
        } else {
          std::memcpy(at, &value, sizeof(value));
        }
      }
      data_.push_back(row.data());
    }
    objective_.resize(bytes_.size());
    std::iota(objective_.begin(), objective_.end(), 0);
    share_.assign(bytes_.size(), 1.0);
  }

  bm::Rows rows() const { return {data_.data(), k_, kElements, dtype_}; }
  bm::ObjectiveMap map() const { return {objective_.data(), share_.data(), k_}; }
  const double* ones() const { return share_.data(); }
  std::byte* row(int r) { return bytes_[static_cast<std::size_t>(r)].data(); }

 private:
  int k_;
  bm::DType dtype_;
  std::vector<std::vector<std::byte>> bytes_;
  std::vector<const void*> data_;
  std::vector<int> objective_;
  std::vector<double> share_;
};

void count_kernels() {
  for (const auto& [dtype, title] : {std::pair{bm::DType::float32, "float32"}, {bm::DType::bfloat16, "bfloat16"}}) {
    for (const int k : {2, 4, 8, 32}) {
      const Jacobian jacobian(k, dtype);
      const std::string where = std::string("[") + title + ",K=" + std::to_string(k) + "]";
      std::vector<double> gramian(static_cast<std::size_t>(k * k));
      std::vector<float> out(kElements);
      count("gramian" + where, [&] { bm::gramian(jacobian.rows(), jacobian.map(), gramian.data()); });
      count("combine" + where, [&] { bm::combine(jacobian.rows(), jacobian.ones(), out.data()); });
      count("accumulate" + where, [&] { bm::accumulate(jacobian.rows(), jacobian.ones(), 1.0, out.data()); });
    }
    const Jacobian row(1, dtype);
    std::vector<float> columns(16384);
    const bm::SketchMap map({0, 1, 2}, static_cast<std::int64_t>(columns.size()));
    count(std::string("sketch[") + title + "]",
          [&] { bm::sketch(row.rows().data[0], kElements, dtype, map, columns.data()); });
  }
}

void count_solvers() {
  for (const int k : {2, 4, 16}) {
    std::mt19937 random(static_cast<unsigned>(k));
    std::normal_distribution<double> normal;
    const auto size = static_cast<std::size_t>(k);
    std::vector<std::vector<double>> rows(size, std::vector<double>(2 * size + 3));
    for (auto& row : rows) std::generate(row.begin(), row.end(), [&] { return normal(random); });
    std::vector<double> gramian;
    for (const auto& a : rows) {
      for (const auto& b : rows) gramian.push_back(std::inner_product(a.begin(), a.end(), b.begin(), 0.0));
    }
    std::vector<double> weights(size);
    std::vector<double> scratch(bm::solve_scratch_size(k));
    for (int id = 0; id < bm::kMethods; ++id) {
      const bm::Method method{.id = static_cast<bm::MethodId>(id)};
      count(std::string("solve[") + bm::kMethodNames[static_cast<std::size_t>(id)] + ",K=" + std::to_string(k) + "]",
            [&] { bm::solve(bm::HostLanes{}, method, {0, 1, 2}, k, gramian.data(), weights.data(), scratch.data()); });
    }
  }
}

/// Rank 0 of several, whose peers say what it says itself. What it counts for is a copy of what would be received.
class Loopback final : public bm::Transport {
 public:
  explicit Loopback(int size) : size_(size) {}
  int rank() const override { return 0; }
  int size() const override { return size_; }
  std::unique_ptr<Exchange> start_all_to_all(Sequence, const std::byte* input, std::size_t pitch, std::size_t bytes,
                                             std::span<std::byte* const> rows) override {
    for (std::size_t p = 1; p < rows.size(); ++p) std::memcpy(rows[p], input + p * pitch, bytes);
    return std::make_unique<Done>();
  }
  std::unique_ptr<Exchange> start_all_gather(Sequence, std::byte* blocks, std::size_t pitch,
                                             std::size_t bytes) override {
    for (int p = 1; p < size_; ++p) std::memcpy(blocks + static_cast<std::size_t>(p) * pitch, blocks, bytes);
    return std::make_unique<Done>();
  }
  void abort() noexcept override {}

 private:
  int size_;
};

void count_collective() {
  constexpr int kWorld = 4;
  constexpr auto kType = bm::DType::float32;
  constexpr std::int64_t kNoLimit = kElements * 4;
  bm::MooCollective collective(std::make_shared<Loopback>(kWorld), bm::Method{.id = bm::MethodId::mgda});
  bm::Objectives objectives;
  for (int r = 0; r < kWorld; ++r) {
    objectives.names.push_back(std::to_string(r));
    objectives.objective.push_back(r);
    objectives.share.push_back(1.0);
  }
  collective.continue_pass(objectives);
  Jacobian bucket(1, kType);
  std::vector<float> shard(kElements / kWorld);
  count("collective[all_reduce]", [&] { collective.all_reduce(bucket.row(0), kElements, kType, {0, 1, 2}, kNoLimit); });
  count("collective[reduce_scatter]", [&] {
    collective.reduce_scatter(shard.data(), bucket.row(0), kElements / kWorld, kType, {0, 1, 2}, kNoLimit);
  });
  count("collective[sketched]", [&] {
    auto sketched = collective.start_sketch(bucket.row(0), kElements, kType, {0, 1, 2}, 4096);
    const bm::BucketSolution solved = collective.solve_sketched(std::move(sketched), {0, 1, 2});
    collective.weighted_all_reduce(bucket.row(0), kElements, kType, solved.weights, bm::ZeroRows::skip);
  });
}

}  // namespace

int main() {
  if (!RUNNING_ON_VALGRIND) {
    std::fprintf(stderr,
                 "instructions: it counts under valgrind alone, and was compiled with its headers: run\n"
                 "valgrind --tool=callgrind --instr-atstart=no instructions\n");
    return 2;
  }
  count_kernels();
  count_solvers();
  count_collective();
  return 0;
}
