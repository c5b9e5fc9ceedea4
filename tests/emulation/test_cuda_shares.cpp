// Shares of rows, and the tables made of them, on the CPU: against make_objective_table() on the host.
#include <bucket_moo/lanes.hpp>
#include <bucket_moo/objective_table.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "checks.hpp"
#include "shares.cuh"

namespace {

using bucket_moo::ObjectiveTable;
using bucket_moo::StepHeader;
using bucket_moo::cuda::Numbers;
using bucket_moo::cuda::ObjectiveTables;
using bucket_moo::cuda::RowObjectives;

/// Tables of a batch, poisoned.
struct Tables {
  Tables(int batch, int rows)
      : header(static_cast<std::size_t>(batch)),
        integers(static_cast<std::size_t>(batch) * static_cast<std::size_t>(3 * rows + 1), -7),
        share(static_cast<std::size_t>(batch * rows), -7.0) {
    int* at = integers.data();
    tables = {header.data(), at, share.data(), at + 2 * batch * rows, at + batch * rows};
  }

  std::vector<StepHeader> header;
  std::vector<int> integers;
  std::vector<double> share;
  ObjectiveTables tables;
};

/// What the ranks of the collective would make of the weights.
Tables expected_of(const std::vector<int>& objective, const std::vector<double>& weights, std::vector<int>* numbers) {
  const int rows = static_cast<int>(objective.size());
  std::vector<bucket_moo::StepRecord> records(objective.size());
  for (std::size_t r = 0; r < objective.size(); ++r) {
    records[r].objective.words[0] = static_cast<std::uint64_t>(objective[r]) + 1;
    records[r].weight = weights[r];
  }
  Tables made(1, rows);
  numbers->resize(objective.size());
  ObjectiveTable table = made.tables.table({numbers->data(), rows, 1, 1}, 0);
  bucket_moo::make_objective_table(bucket_moo::HostLanes{}, records.data(), rows, {}, table);
  return made;
}

void shares_are_those_of_ranks(const std::vector<int>& objective, int k,
                               const std::vector<std::vector<double>>& weights) {
  const auto rows = objective.size();
  const int batch = static_cast<int>(weights.size());
  for (const bool single : {false, true}) {
    std::vector<double> given;
    for (const auto& one : weights) {
      for (const double w : one) given.push_back(single ? static_cast<double>(static_cast<float>(w)) : w);
    }
    const std::vector<float> narrow(given.begin(), given.end());
    std::vector<double> shares(given.size(), -7.0);
    const RowObjectives problem{objective.data(), static_cast<int>(rows), k, batch};
    const Numbers in = single ? Numbers{const_cast<float*>(narrow.data()), true} : Numbers{given.data(), false};
    CHECK(bucket_moo::cuda::launch_shares(problem, in, {shares.data(), false}, nullptr) == cudaSuccess);
    Tables made(batch, static_cast<int>(rows));
    CHECK(bucket_moo::cuda::launch_tables(problem, {shares.data(), false}, made.tables, nullptr) == cudaSuccess);
    for (int b = 0; b < batch; ++b) {
      const auto first = static_cast<std::ptrdiff_t>(static_cast<std::size_t>(b) * rows);
      std::vector<int> numbers;
      const Tables host = expected_of(
          objective, {given.begin() + first, given.begin() + first + static_cast<std::ptrdiff_t>(rows)}, &numbers);
      CHECK(numbers == objective);
      const ObjectiveTable got = made.tables.table(problem, b);
      const ObjectiveTable want = host.tables.table({numbers.data(), static_cast<int>(rows), k, 1}, 0);
      CHECK(got.header->k == k && want.header->k == k && got.header->error == want.header->error);
      CHECK(got.header->one_to_one == want.header->one_to_one);
      for (std::size_t r = 0; r < rows; ++r) CHECK(got.share[r] == want.share[r]);
      for (int i = 0; i < k; ++i) CHECK(got.leader[i] == want.leader[i] && got.begin[i] == want.begin[i]);
      CHECK(got.begin[k] == want.begin[k]);
      for (int m = 0; m < want.begin[k]; ++m) CHECK(got.member[m] == want.member[m]);
    }
  }
}

void a_wrong_weight_makes_all_shares_nan() {
  const std::vector<int> objective{0, 1, 0};
  const RowObjectives problem{objective.data(), 3, 2, 2};
  for (const double wrong : {-1.0, static_cast<double>(NAN), std::numeric_limits<double>::infinity()}) {
    std::vector<double> weights{1.0, 2.0, 3.0, 1.0, wrong, 1.0};
    std::vector<double> shares(6);
    CHECK(bucket_moo::cuda::launch_shares(problem, {weights.data(), false}, {shares.data(), false}, nullptr) ==
          cudaSuccess);
    CHECK(shares[0] == 0.25 && shares[1] == 1.0 && shares[2] == 0.75);  // of the other problem
    for (std::size_t r = 3; r < 6; ++r) CHECK(std::isnan(shares[r]));
    Tables made(2, 3);
    CHECK(bucket_moo::cuda::launch_tables(problem, {shares.data(), false}, made.tables, nullptr) == cudaSuccess);
    const ObjectiveTable table = made.tables.table(problem, 1);
    CHECK(table.begin[0] == 0 && table.begin[1] == 2 && table.begin[2] == 3);  // all are read
  }
}

void what_is_out_of_range_is_refused() {
  const int objective[2] = {0, 1};
  double values[2] = {1.0, 1.0};
  const Numbers numbers{values, false};
  const auto says = [&](const RowObjectives& rows, Numbers in) {
    return bucket_moo::cuda::launch_shares(rows, in, numbers, nullptr);
  };
  CHECK(says({objective, 2, 2, 0}, {}) == cudaSuccess);
  CHECK(says({objective, 2, 2, 1}, {}) == cudaErrorInvalidValue);
  CHECK(says({objective, 2, 3, 1}, numbers) == cudaErrorInvalidValue);
  CHECK(says({objective, 0, 0, 1}, numbers) == cudaErrorInvalidValue);
  CHECK(says({nullptr, 2, 2, 1}, numbers) == cudaErrorInvalidValue);
  CHECK(bucket_moo::cuda::launch_tables({objective, 2, 2, 1}, numbers, {}, nullptr) == cudaErrorInvalidValue);
}

}  // namespace

int main() {
  checks::context = "one row an objective";
  shares_are_those_of_ranks({0, 1, 2}, 3, {{1.0, 1.0, 1.0}, {1.0, 0.0, 5.0}});
  checks::context = "objectives of several rows";
  shares_are_those_of_ranks({0, 1, 0, 1}, 2, {{1.0, 2.0, 3.0, 0.0}, {0.0, 1e-35, 0.0, 1e35}, {3e38, 1.0, 3e38, 7.0}});
  checks::context = "many rows";
  std::vector<int> objective;
  std::vector<double> weights;
  for (int r = 0; r < 300; ++r) {
    objective.push_back(r % 64);
    weights.push_back(r % 5 == 0 ? 0.0 : 1.0 + r % 7);
  }
  shares_are_those_of_ranks(objective, 64, {weights});
  checks::context = "wrong weights";
  a_wrong_weight_makes_all_shares_nan();
  checks::context = "arguments";
  what_is_out_of_range_is_refused();
  return checks::finish();
}
