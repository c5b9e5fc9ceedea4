// What may be read of a StepRecord that another rank has sent.
#ifndef BUCKET_MOO_RECEIVED_RECORD_HPP
#define BUCKET_MOO_RECEIVED_RECORD_HPP

#include <bucket_moo/config.hpp>
#include <bucket_moo/objective_table.hpp>
#include <cstdint>

namespace bucket_moo {

/// Whether a record can be one that a rank of this build has made: its name ends, and its numbers are in their ranges.
/// Bytes of anything else most likely cannot.
/// \param dtypes  how many dtypes there are
BUCKET_MOO_HD inline bool may_be_record(const StepRecord& record, int dtypes) {
  const bool name_ends = record.objective.text()[kMaxObjectiveName] == '\0';
  const bool is_weight = record.weight >= 0.0 && record.weight - record.weight == 0.0;  // neither NaN nor infinite
  return name_ends && is_weight && record.numel >= 0 && record.dtype >= 0 && record.dtype < dtypes &&
         record.operation >= 0 && record.operation <= static_cast<std::int32_t>(Operation::reduce_scatter_inside) &&
         record.pass >= 0 && (record.leaves_open == 0 || record.leaves_open == 1) && record.told >= 0;
}

}  // namespace bucket_moo

#endif  // BUCKET_MOO_RECEIVED_RECORD_HPP
