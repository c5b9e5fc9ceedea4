// Any bytes as the records that ranks send each other: no crash, no hang, and a table that can be indexed by.
//
//   fuzz_records COUNT SEED
//
// Build with -fsanitize=address,undefined (preset `asan`). Arrays are as long as the table says and no longer, so that
// what is read or written beside them is found.

#include <bucket_moo/lanes.hpp>
#include <bucket_moo/objective_table.hpp>
#include <bucket_moo/received_record.hpp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace {

using namespace bucket_moo;

constexpr int kDtypes = 4;

class Generator {
 public:
  explicit Generator(std::uint64_t seed) : random_(seed) {}
  std::uint64_t below(std::uint64_t limit) { return random_() % limit; }

  /// What an honest rank may send: few names, any weight.
  StepRecord honest() {
    StepRecord record;
    const std::string name = std::to_string(below(1 + below(80)));
    std::memcpy(record.objective.text(), name.data(), name.size());
    record.weight = std::ldexp(static_cast<double>(below(1000)), static_cast<int>(below(2000)) - 1000);
    record.step = 7;
    record.numel = 10;
    return record;
  }

  /// With some of its bytes changed, or all of them.
  StepRecord damaged(StepRecord record) {
    unsigned char bytes[sizeof(record)];
    std::memcpy(bytes, &record, sizeof(record));
    const std::uint64_t changes = below(4) == 0 ? sizeof(bytes) : 1 + below(4);
    for (std::uint64_t i = 0; i < changes; ++i) {
      const std::uint64_t place = changes == sizeof(bytes) ? i : below(sizeof(bytes));
      bytes[place] = static_cast<unsigned char>(random_());
    }
    std::memcpy(&record, bytes, sizeof(record));
    return record;
  }

 private:
  std::mt19937_64 random_;
};

/// \return what is wrong, or nothing
std::string check(const std::vector<StepRecord>& records) {
  const int world = static_cast<int>(records.size());
  const auto size = static_cast<std::size_t>(world);
  StepHeader header;
  const auto leader = std::make_unique<int[]>(size);
  const auto objective = std::make_unique<int[]>(size);
  const auto share = std::make_unique<double[]>(size);
  const auto begin = std::make_unique<int[]>(size + 1);
  const auto member = std::make_unique<int[]>(size);
  make_objective_table(HostLanes{}, records.data(), world, {},
                       {&header, leader.get(), objective.get(), share.get(), begin.get(), member.get()});
  if (header.error != StepError::none) return header.k == 0 ? "" : "objectives in spite of an error";
  if (header.k < 1 || header.k > kMaxObjectives) return "K " + std::to_string(header.k);
  std::vector<double> sums(static_cast<std::size_t>(header.k));
  for (std::size_t r = 0; r < size; ++r) {
    if (objective[r] < 0 || objective[r] >= header.k) return "objective " + std::to_string(objective[r]);
    if (!(share[r] >= 0.0 && share[r] <= 1.0)) return "share " + std::to_string(share[r]);
    sums[static_cast<std::size_t>(objective[r])] += share[r];
  }
  for (const double sum : sums) {
    if (sum != 0.0 && !(std::fabs(sum - 1.0) < 1e-12)) return "shares add up to " + std::to_string(sum);
  }
  for (int i = 0; i < begin[static_cast<std::size_t>(header.k)]; ++i) {
    const int rank = member[static_cast<std::size_t>(i)];
    if (rank < 0 || rank >= world) return "member " + std::to_string(rank);
  }
  return {};
}

/// Reads a name as errors and reports do.
std::size_t length_of_name(const StepRecord& record) {
  const auto copy = std::make_unique<StepRecord>(record);  // with nothing behind it
  return std::strlen(copy->objective.text());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: fuzz_records COUNT SEED\n");
    return 2;
  }
  const long count = std::atol(argv[1]);
  const std::uint64_t first = std::strtoull(argv[2], nullptr, 10);
  long failed = 0;
  long accepted = 0;
  long refused = 0;
  for (long i = 0; i < count; ++i) {
    const std::uint64_t seed = first + static_cast<std::uint64_t>(i);
    Generator generator(seed);
    std::vector<StepRecord> records(1 + generator.below(generator.below(4) == 0 ? 90 : 6));
    for (StepRecord& record : records) record = generator.honest();
    const bool is_honest = generator.below(3) == 0;
    if (!is_honest) {
      StepRecord& one = records[generator.below(records.size())];
      one = generator.damaged(one);
    }
    std::string problem = check(records);  // whatever they are
    bool are_records = true;
    for (const StepRecord& record : records) {
      if (!may_be_record(record, kDtypes)) {
        are_records = false;
      } else if (length_of_name(record) > kMaxObjectiveName) {
        problem = "a name without an end";
      }
    }
    if (is_honest && !are_records) problem = "an honest record is refused";
    (are_records ? accepted : refused) += 1;
    if (!problem.empty()) {
      std::printf("FAILED seed %llu: %s\n", static_cast<unsigned long long>(seed), problem.c_str());
      ++failed;
    }
  }
  std::printf("%ld inputs, %ld accepted, %ld refused, %ld failed\n", count, accepted, refused, failed);
  return failed == 0 && accepted > 0 && refused > 0 ? 0 : 1;
}
