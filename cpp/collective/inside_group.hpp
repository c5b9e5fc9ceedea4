// What ranks that share an objective do before and after the MOO collective across objectives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "collective/moo_collective.hpp"
#include "collective/objectives.hpp"
#include "collective/persistent_buffer.hpp"
#include "collective/rank_grid.hpp"
#include "collective/transport.hpp"
#include "kernels/rows.hpp"

namespace bucket_moo {

/// The lower level of a reduction in two levels. An ordinary reduce-scatter leaves on each rank of an inside group a
/// part of the weighted mean of the group's gradients; the rank reduces that across objectives; an all-gather puts the
/// parts together, unless the part is what is wanted. Wire bytes of n elements over I ranks: n (I-1)/I each way.
///
/// Calls are collective over the group, as MooCollective's.
class InsideGroup {
 public:
  /// What a rank has of a bucket that is reduced in place.
  struct Part {
    std::byte* data;
    std::int64_t n;
  };

  /// `rank`: this one, in the group of the grid
  InsideGroup(std::shared_ptr<Transport> transport, RankGrid grid, int rank);

  int rank() const { return sums_.rank(); }
  int size() const { return sums_.world_size(); }

  /// Who counts for how much in a pass, from the records of all ranks of the grid. Raises AgreedError, alike on all of
  /// them, if ranks of any inside group stand for different objectives.
  Objectives read(std::span<const StepRecord> records) const;

  /// A record for every inside group, as if it were one rank: its weight is the mean of its ranks' weights.
  std::vector<StepRecord> groups(std::span<const StepRecord> records) const;

  /// What follows is of this pass.
  void continue_pass(const Objectives& pass) { sums_.continue_pass(pass); }

  /// Where this rank's part of n elements at `bucket` is. The last rank's has the rest of the division, too.
  Part part(void* bucket, std::int64_t n, DType dtype) const;
  /// Replaces the part by that of the group's mean.
  void sum_in_place(void* bucket, std::int64_t n, DType dtype);
  /// Replaces all n elements by the ranks' parts.
  void gather_in_place(void* bucket, std::int64_t n, DType dtype);

  /// Writes shard rank() of the group's mean to `output`; `input` holds size() shards.
  void sum_to_shard(void* output, const void* input, std::int64_t shard, DType dtype);

  /// `input` holds a shard for every rank of the grid, in the order of the ranks. Of the group's mean this rank gets
  /// those of its across group, in its order; see summed().
  void sum_shards_across(const void* input, std::int64_t shard, DType dtype);
  const std::byte* summed() const { return summed_.data(); }

  std::size_t scratch_bytes() const;

 private:
  const std::byte* in_order_of_grid(const std::byte* input, std::size_t shard_bytes);

  const std::shared_ptr<Transport> transport_;
  const RankGrid grid_;
  const int own_;       // this rank's index across
  MooCollective sums_;  // of which the ordinary sums are used
  PersistentBuffer ordered_;
  PersistentBuffer summed_;
  PersistentBuffer tails_;
};

}  // namespace bucket_moo
