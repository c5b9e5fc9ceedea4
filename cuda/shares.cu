#include <cuda_runtime.h>

#include <bucket_moo/limits.hpp>
#include <cfloat>
#include <cmath>

#include "launch.cuh"
#include "shares.cuh"

namespace bucket_moo::cuda {
namespace {

/// A block a problem, a thread an objective: no thread reads what another one writes.
constexpr int kThreads = kMaxObjectives;

__global__ void __launch_bounds__(kThreads)
    find_shares(const RowObjectives rows, const Numbers weights, const Numbers shares) {
  const int own = static_cast<int>(threadIdx.x);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * rows.rows;
  double largest = 0.0;
  bool wrong = false;
  for (int r = 0; r < rows.rows; ++r) {
    const double weight = weights.get(first + r);
    wrong = wrong || !(weight >= 0.0 && weight <= DBL_MAX);
    if (rows.objective[r] == own && weight > largest) largest = weight;
  }
  const auto share_of = [=](int r) {
    const double relative = largest > 0.0 ? weights.get(first + r) / largest : 0.0;
    return relative >= kSmallestShare ? relative : 0.0;
  };
  double total = 0.0;
  for (int r = 0; r < rows.rows; ++r) {
    if (rows.objective[r] == own) total += share_of(r);
  }
  for (int r = 0; r < rows.rows; ++r) {
    if (rows.objective[r] != own) continue;
    const double share = share_of(r);
    shares.set(first + r, wrong ? nan("") : share > 0.0 ? share / total : 0.0);
  }
}

__global__ void __launch_bounds__(kThreads)
    share_tables(const RowObjectives rows, const Numbers shares, const ObjectiveTables tables) {
  const int own = static_cast<int>(threadIdx.x);
  const std::int64_t problem = blockIdx.x;
  if (own >= rows.k) return;
  const ObjectiveTable table = tables.table(rows, problem);
  const auto share_of = [=](int r) { return shares.get(problem * rows.rows + r); };
  int before = 0;  // members of the objectives before this one
  for (int r = 0; r < rows.rows; ++r) before += rows.objective[r] < own && share_of(r) != 0.0 ? 1 : 0;
  table.begin[own] = before;
  bool found = false;
  int next = before;
  for (int r = 0; r < rows.rows; ++r) {
    if (rows.objective[r] != own) continue;
    if (!found) table.leader[own] = r;
    found = true;
    const double share = share_of(r);
    table.share[r] = share;
    if (share != 0.0) table.member[next++] = r;
  }
  if (own == rows.k - 1) table.begin[rows.k] = next;
  if (own != 0) return;
  bool alone = rows.k == rows.rows;
  for (int r = 0; alone && r < rows.rows; ++r) alone = rows.objective[r] == r && share_of(r) == 1.0;
  StepHeader header;
  header.k = rows.k;
  header.one_to_one = alone ? 1 : 0;
  *table.header = header;
}

bool in_range(const RowObjectives& rows) {
  return rows.rows >= 1 && rows.k >= 1 && rows.k <= kMaxObjectives && rows.k <= rows.rows && rows.batch >= 0 &&
         rows.objective != nullptr;
}

}  // namespace

cudaError_t launch_shares(const RowObjectives& rows, Numbers weights, Numbers shares, cudaStream_t stream) {
  if (!in_range(rows)) return cudaErrorInvalidValue;
  if (rows.batch == 0) return cudaSuccess;
  if (weights.data == nullptr || shares.data == nullptr) return cudaErrorInvalidValue;
  return launch(find_shares, {static_cast<unsigned>(rows.batch), kThreads}, stream, rows, weights, shares);
}

cudaError_t launch_tables(const RowObjectives& rows, Numbers shares, const ObjectiveTables& tables,
                          cudaStream_t stream) {
  if (!in_range(rows)) return cudaErrorInvalidValue;
  if (rows.batch == 0) return cudaSuccess;
  if (shares.data == nullptr || tables.header == nullptr || tables.leader == nullptr || tables.share == nullptr ||
      tables.begin == nullptr || tables.member == nullptr) {
    return cudaErrorInvalidValue;
  }
  return launch(share_tables, {static_cast<unsigned>(rows.batch), kThreads}, stream, rows, shares, tables);
}

}  // namespace bucket_moo::cuda
