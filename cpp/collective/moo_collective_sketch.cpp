// Of the collective: weights from sketches.
#include <memory>
#include <utility>

#include "bucket_moo/sketch.hpp"
#include "collective/memory_layout.hpp"
#include "collective/moo_collective.hpp"
#include "collective/profiler_scope.hpp"
#include "kernels/gramian.hpp"
#include "kernels/sketch.hpp"

namespace bucket_moo {

std::unique_ptr<SketchedBucket> MooCollective::start_sketch(const void* bucket, std::int64_t n, DType dtype,
                                                            const RandomKey& key, std::int64_t width) {
  std::unique_ptr<SketchedBucket> sketched;
  if (free_sketches_.empty()) {
    sketched = std::make_unique<SketchedBucket>();
  } else {
    sketched = std::move(free_sketches_.back());
    free_sketches_.pop_back();
  }
  const DType type = sketch_dtype(dtype);
  const std::int64_t bytes = width * static_cast<std::int64_t>(element_size(type));
  std::byte* const columns = sketched->columns_.reserve(static_cast<std::size_t>(bytes));
  {
    const ProfilerScope stage("bucket_moo sketch");
    sketch(bucket, n, dtype, SketchMap(key, width), columns);
  }
  sketched->sketch_ = sharded_in_place(columns, width, type, rank_, world_, bytes);
  if (sketched->sketch_.shard_size > 0) {
    sketched->tile_.start(transport_.get(), Transport::Sequence::ahead, sketched->sketch_, 0);
  }
  return sketched;
}

BucketSolution MooCollective::solve_sketched(std::unique_ptr<SketchedBucket> sketched, const RandomKey& key,
                                             double* state) {
  BucketSolution result = empty_solution(objectives_.k());
  const Sections sections = one_part(sketched->sketch_.shard_size, sketched->sketch_.tail_size);
  begin_row_norms(sections);
  if (sketched->sketch_.shard_size > 0) {
    const Rows rows = sketched->tile_.wait();
    const ProfilerScope stage("bucket_moo gramian");
    gramian(rows, objectives_.map(), result.gramian.data());
    add_row_norms(gramian, rows, sections.shard);
  }
  exchange_partials(sketched->sketch_, sections, result.gramian);
  result.norms = row_norms();
  solve(key, state, result);
  free_sketches_.push_back(std::move(sketched));
  return result;
}

ShardedBucket MooCollective::sketch_columns(DType dtype, std::int64_t width) {
  const DType type = sketch_dtype(dtype);
  std::byte* const columns = columns_.reserve(static_cast<std::size_t>(width) * element_size(type));
  return sharded_in_place(columns, width, type, rank_, world_, kSumTileBytes);
}

void MooCollective::accumulate_sketch(const void* row, std::int64_t n, DType dtype, const RandomKey& key,
                                      std::int64_t width, const PassRows& pass, ObjectiveTile& tile) {
  const ShardedBucket columns = sketch_columns(dtype, width);
  {
    const ProfilerScope stage("bucket_moo sketch");
    sketch(row, n, dtype, SketchMap(key, width), columns_.data());
  }
  accumulate(columns, pass, one_part(columns.shard_size, columns.tail_size), tile);
}

}  // namespace bucket_moo
