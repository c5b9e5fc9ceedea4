#include "collective/objectives.hpp"

#include <c10/util/Exception.h>

#include <algorithm>
#include <sstream>

#include "bucket_moo/limits.hpp"
#include "collective/dtype.hpp"

namespace bucket_moo {
namespace {

const char* name_of(Operation operation) {
  switch (operation) {
    case Operation::ddp_bucket:
      return "DDP bucket";
    case Operation::all_reduce:
      return "all_reduce";
    case Operation::reduce_scatter:
      return "reduce_scatter";
    case Operation::invalid:
      return "call with bad arguments";
  }
  return "unknown";
}

std::string describe(const StepRecord& record) {
  std::ostringstream text;
  text << name_of(static_cast<Operation>(record.operation)) << " of " << record.numel << " elements of dtype "
       << dtype_name(static_cast<DType>(record.dtype)) << " in step " << record.step;
  return text.str();
}

bool same_call(const StepRecord& a, const StepRecord& b) {
  return a.step == b.step && a.numel == b.numel && a.dtype == b.dtype && a.operation == b.operation;
}

}  // namespace

ObjectiveTable make_objective_table(std::span<const StepRecord> records) {
  for (std::size_t rank = 0; rank < records.size(); ++rank) {
    TORCH_CHECK_VALUE(static_cast<Operation>(records[rank].operation) != Operation::invalid, "bucket_moo_ext: rank ",
                      rank, " refused the arguments of its call; its own error says why");
  }
  for (std::size_t rank = 1; rank < records.size(); ++rank) {
    TORCH_CHECK_VALUE(same_call(records[0], records[rank]),
                      "bucket_moo_ext: ranks of one group must make the same calls in the same order; rank 0 starts a ",
                      describe(records[0]), ", rank ", rank, " a ", describe(records[rank]));
  }
  ObjectiveTable table;
  std::vector<double> largest;  // weight of each objective's ranks; dividing by it first keeps sums from overflowing
  for (const StepRecord& record : records) {
    const std::string name(record.objective.data());
    const auto found = std::find(table.names.begin(), table.names.end(), name);
    const auto k = static_cast<std::size_t>(found - table.names.begin());
    if (found == table.names.end()) {
      table.names.push_back(name);
      largest.push_back(0.0);
    }
    table.objective.push_back(static_cast<int>(k));
    largest[k] = std::max(largest[k], record.weight);
  }
  TORCH_CHECK_VALUE(table.k() <= kMaxObjectives, "bucket_moo_ext: at most ", kMaxObjectives,
                    " objectives are supported, got ", table.k(), " over ", records.size(),
                    " ranks; let several ranks share an objective (objective=...)");
  std::vector<double> total(table.names.size());
  for (std::size_t rank = 0; rank < records.size(); ++rank) {
    const auto k = static_cast<std::size_t>(table.objective[rank]);
    const double relative = largest[k] > 0.0 ? records[rank].weight / largest[k] : 0.0;
    // The kernels multiply in float32: a share below its range is none.
    table.share.push_back(relative < kSmallestShare ? 0.0 : relative);
    total[k] += table.share.back();
  }
  for (std::size_t rank = 0; rank < records.size(); ++rank) {
    if (table.share[rank] > 0.0) {
      table.share[rank] /= total[static_cast<std::size_t>(table.objective[rank])];
    }
  }
  return table;
}

}  // namespace bucket_moo
