#include "collective/objectives.hpp"

#include <algorithm>
#include <cstring>
#include <sstream>
#include <stdexcept>

#include "bucket_moo/lanes.hpp"
#include "bucket_moo/limits.hpp"
#include "bucket_moo/received_record.hpp"
#include "collective/agreed_error.hpp"
#include "kernels/dtype_names.hpp"
#include "methods/message.hpp"

namespace bucket_moo {
namespace {

constexpr int kDtypes = static_cast<int>(DType::float64) + 1;

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
    case Operation::end_of_pass:
      return "end of a backward pass";
    case Operation::reduce_scatter_inside:
      return "reduce_scatter inside";
  }
  return "unknown";
}

std::string describe(const StepRecord& record) {
  std::ostringstream text;
  const auto operation = static_cast<Operation>(record.operation);
  text << name_of(operation);
  if (operation != Operation::end_of_pass) {
    text << " of " << record.numel << " elements of dtype " << dtype_name(static_cast<DType>(record.dtype));
  }
  text << " in step " << record.step;
  if (record.pass > 0 || record.leaves_open != 0) {
    text << ", pass " << record.pass + 1 << ", which " << (record.leaves_open != 0 ? "leaves it open" : "closes it");
  }
  return text.str();
}

}  // namespace

ObjectiveName make_objective_name(const std::string& name) {
  ObjectiveName padded;
  std::memcpy(padded.text(), name.data(), std::min(name.size(), kMaxObjectiveName));
  return padded;
}

std::vector<StepRecord> gather_records(Transport* transport, const StepRecord& own) {
  std::vector<StepRecord> records(static_cast<std::size_t>(transport != nullptr ? transport->size() : 1));
  records[static_cast<std::size_t>(transport != nullptr ? transport->rank() : 0)] = own;
  if (transport != nullptr) {
    transport->all_gather(reinterpret_cast<std::byte*>(records.data()), sizeof(StepRecord));
  }
  for (std::size_t r = 0; r < records.size(); ++r) {
    if (!may_be_record(records[r], kDtypes)) {
      throw std::invalid_argument(message("bucket_moo_ext: what rank ", r,
                                          " sent is no record of a step of this version ",
                                          "of bucket_moo_ext; ranks of one group must run the same build"));
    }
  }
  return records;
}

void check_step(const StepHeader& header, std::span<const StepRecord> records, int limit) {
  switch (header.error) {
    case StepError::none:
      return;
    case StepError::invalid_call:
      throw AgreedError(message("bucket_moo_ext: rank ", header.culprit,
                                " refused the arguments of its call; its own error says why"));
    case StepError::other_call: {
      if (records.empty()) {
        throw AgreedError(message("bucket_moo_ext: ranks of one group must make the same calls in the same order; ",
                                  "in step ", header.step, " rank ", header.culprit, " made another than rank 0"));
      }
      const StepRecord& culprit = records[static_cast<std::size_t>(header.culprit)];
      throw AgreedError(
          message("bucket_moo_ext: ranks of one group must make the same calls in the same order; ", "rank 0 starts a ",
                  describe(records[0]), ", rank ", header.culprit, " a ", describe(culprit),
                  describe(culprit) != describe(records[0])
                      ? ""
                      : "; the names of their buckets differ, or the totals that accumulate() was given"));
    }
    case StepError::too_many_objectives:
      throw AgreedError(message("bucket_moo_ext: at most ", limit, " objectives are supported",
                                limit < kMaxObjectives ? " where a run on a GPU began with few" : "", ", got ",
                                header.culprit, "; let several ranks share an objective (objective=...)"));
    case StepError::more_objectives:
      throw AgreedError(message("bucket_moo_ext: step ", header.step, " has ", header.culprit,
                                " objectives in all its ",
                                "passes, more than the first step of several passes, for which room was made on the ",
                                "GPU; let that one have all objectives, or use layout='passes'"));
    case StepError::objective_count:
      throw AgreedError(message("bucket_moo_ext: the method's options are for another number of objectives than the ",
                                header.culprit, " of step ", header.step));
    case StepError::too_many_names:
      throw AgreedError(message("bucket_moo_ext: in step ", header.step, " the state had met ", header.culprit,
                                " objective names, more than it can remember"));
    case StepError::several_objectives:
      throw AgreedError(message("bucket_moo_ext: with layout='passes' all ranks must have the same objective in a ",
                                "pass; in step ", header.step, " rank ", header.culprit,
                                " had another than rank 0 (layout='ranks' allows that)"));
    case StepError::several_inside:
      throw AgreedError(message("bucket_moo_ext: ranks along the dimensions of the mesh that `objectives` does not ",
                                "name must have the same objective in a pass; in step ", header.step, " rank ",
                                header.culprit, " had another than the first of them"));
    case StepError::other_piece:
      throw AgreedError(message("bucket_moo_ext: ranks of model_parallel_group must reduce the same buckets, of ",
                                "parameters with the same names, in the same order, and have the same objective and ",
                                "weight; in step ", header.step, " place ", header.culprit,
                                " differed from this rank's, or had an error of its own"));
    case StepError::untold_objective:
      throw AgreedError(message("bucket_moo_ext: accumulate(totals=...) of step ", header.step, " lacks the objective ",
                                "of rank ", header.culprit));
    case StepError::other_total:
      throw AgreedError(message("bucket_moo_ext: accumulate(totals=...) of step ", header.step, " says of objective ",
                                "number ", header.culprit, ", counted as they came, what its weights add up to over ",
                                "all ranks and passes; they add up to something else"));
    case StepError::no_rows:
      throw AgreedError(message("bucket_moo_ext: accumulate(totals=...) of step ", header.step, " has ", header.culprit,
                                " more objectives than the step has had rows of"));
    case StepError::other_objectives:
      throw AgreedError(
          message("bucket_moo_ext: on a GPU a Sketch with refresh_every > 1 or lag=1 needs the objectives of the ",
                  "first step in every step, since weights are kept for them; step ", header.step, " has others (",
                  header.culprit, " of them)"));
  }
}

void check_one_objective(std::span<const StepRecord> records) {
  for (std::size_t r = 1; r < records.size(); ++r) {
    if (!same_name(records[r].objective, records[0].objective)) {
      throw AgreedError(
          message("bucket_moo_ext: with layout='passes' all ranks must have the same objective in a pass; in step ",
                  records[0].step, ", pass ", records[0].pass + 1, " rank 0 has '", records[0].objective.text(),
                  "', rank ", r, " '", records[r].objective.text(), "' (layout='ranks' allows that)"));
    }
  }
}

Objectives read_objectives(std::span<const StepRecord> records) {
  const std::size_t world = records.size();
  Objectives result;
  result.objective.resize(world);
  result.share.resize(world);
  StepHeader header;
  std::vector<int> leader(world);
  std::vector<int> begin(world + 1);
  std::vector<int> member(world);
  make_objective_table(
      HostLanes{}, records.data(), static_cast<int>(world), {},
      {&header, leader.data(), result.objective.data(), result.share.data(), begin.data(), member.data()});
  check_step(header, records, kMaxObjectives);
  for (std::size_t k = 0; k < static_cast<std::size_t>(header.k); ++k) {
    result.names.emplace_back(records[static_cast<std::size_t>(leader[k])].objective.text());
  }
  return result;
}

}  // namespace bucket_moo
