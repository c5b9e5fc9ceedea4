// DeviceCollective's part for buckets whose parts have weights of their own.
#include "c10d_collective/device_collective.hpp"
#include "model_pieces.cuh"
#include "nvtx_range.cuh"
#include "parts.cuh"

namespace bucket_moo {

using cuda::NvtxRange;

void DeviceCollective::part_gramians(const Bucket& bucket, const DeviceTile& tile, DeviceParts& parts,
                                     std::uint64_t call) {
  const int limit = step_.pass_limit();  // the same on all ranks
  parts.begin(tile.objectives(), limit, step_.begun());
  begin_sums(tile);
  const std::size_t message = parts.message_bytes();
  const auto stride = parts.gramians().stride;
  const auto enqueue = [&](const cuda::DeviceRows& rows, const cuda::PartPieces& pieces, double* packed) {
    const NvtxRange range("bucket_moo gramian");
    std::byte* const workspace = workspace_.reserve(cuda::part_workspace_size(pieces.in_parts, limit));
    check_cuda(cuda::launch_part_gramians(rows, step_.sums_table(), pieces, workspace, {packed, stride}, stream()),
               "enqueueing the Gramians of parts");
  };
  const double* of_tail = nullptr;
  if (bucket.tail_size > 0) {
    enqueue(tile.tail(), parts.tail(), parts.of_tail().packed);
    of_tail = parts.of_tail().packed;
  }
  cuda::GramianParts shards;
  if (bucket.shard_size > 0) {
    const std::size_t total = static_cast<std::size_t>(world_size()) * message;
    std::byte* const messages = messages_.reserve(total);
    enqueue(tile.shard(0, bucket.shard_size), parts.shard(),
            reinterpret_cast<double*>(messages + static_cast<std::size_t>(rank()) * message));
    const NvtxRange range("bucket_moo exchange");
    exchange_.all_gather(messages_.tensor(total));
    shards = {.messages = messages, .pitch = static_cast<std::int64_t>(message), .world = world_size()};
  }
  const auto write = [&](double* out) { add_part_gramians(parts, of_tail, parts.counted_elsewhere(), shards, out); };
  double* const out = parts.gramians().packed;
  if (inside_) {
    add_part_gramians(parts, nullptr, nullptr, inside_->gather_gramians(message, write), out);
  } else if (pieces_.size() > 1) {
    add_part_gramians(parts, nullptr, nullptr, gather_pieces(message, call, write), out);
  } else {
    write(out);
  }
}

/// out = `own` (nullptr: nothing) + the messages', for each part.
void DeviceCollective::add_part_gramians(const DeviceParts& parts, const double* own, const std::byte* left_out,
                                         const cuda::GramianParts& messages, double* out) {
  check_cuda(cuda::launch_sum_part_gramians(step_.sums_table().header, parts.parts(), step_.pass_limit(), own, left_out,
                                            messages.messages, messages.pitch, messages.world,
                                            {out, parts.gramians().stride}, stream()),
             "enqueueing the sums of parts' Gramians");
}

/// What every piece of the model writes, of `bytes` bytes; where they do not do the same the step has an error.
cuda::GramianParts DeviceCollective::gather_pieces(std::size_t bytes, std::uint64_t call,
                                                   const std::function<void(double*)>& write) {
  const NvtxRange range("bucket_moo exchange");
  const std::size_t message = sizeof(cuda::PieceSaid) + bytes;
  const std::size_t total = static_cast<std::size_t>(pieces_.size()) * message;
  std::byte* const messages = from_pieces_.reserve(total);
  std::byte* const own = messages + static_cast<std::size_t>(pieces_.rank()) * message;
  check_cuda(cuda::launch_write_piece(step_.sums(), call, reinterpret_cast<cuda::PieceSaid*>(own), stream()),
             "enqueueing what a piece says");
  write(reinterpret_cast<double*>(own + sizeof(cuda::PieceSaid)));
  pieces_.all_gather(from_pieces_.tensor(total));
  const auto pitch = static_cast<std::int64_t>(message);
  check_cuda(cuda::launch_check_pieces(messages, pitch, pieces_.size(), pieces_.rank(), step_.sums().header,
                                       step_.sums_table().header, step_.failure_report(), stream()),
             "enqueueing the comparison of pieces");
  return {.messages = messages + sizeof(cuda::PieceSaid), .pitch = pitch, .world = pieces_.size()};
}

void DeviceCollective::place_parts(const DeviceParts& parts, const PartRules& rules) {
  for (std::size_t i = 0; i < parts.groups().size(); ++i) {
    DeviceProblems& problems = *parts.groups()[i].problems;
    problems.reserve(step_.pass_capacity());
    cuda::GroupedParts grouped = parts.grouped()[i];
    grouped.names_in_key = rules.names_in_key;
    if (rules.key) {
      grouped.hash = nullptr;
      grouped.one_hash = *rules.key;
    }
    check_cuda(cuda::launch_place_parts(step_.sums(), parts.gramians(), grouped, problems.pointers(), rules.by_support,
                                        step_.begun(), parts.support(), parts.places(), stream()),
               "enqueueing the search for the problems of parts");
  }
}

void DeviceCollective::solve_parts(const DeviceProblems& problems, const DeviceTile& tile, const PartSolve& solve,
                                   bool is_fresh) {
  cuda::SolveStep step = is_fresh ? problem_of_sums(tile) : begin_sums(tile);
  const NvtxRange range("bucket_moo solve");
  const ObjectiveRegistry registry = step_.registry_of_sums();
  if (solve.state != nullptr) {
    step.slot = registry.slot;
    step.capacity = registry.capacity;
    step.state = solve.state->data();
  }
  step.method = method_;
  step.seed = seed_;
  const cuda::PartProblems& all = problems.pointers();
  step.k_bound = all.capacity;
  step.problems = all.groups * all.each;
  step.each = all.each;
  step.count = all.count;
  step.key = all.key;
  step.gramian.packed = all.packed;
  step.result = all.result;
  step.scales_to_mean = solve.scales_to_mean;
  step.importance = solve.importance;
  check_cuda(cuda::launch_solve(step, stream()), "enqueueing the solves of parts");
}

void DeviceCollective::combine_parts(const Bucket& bucket, const DeviceTile& tile, const DeviceParts& parts,
                                     bool is_fresh) {
  if (!is_fresh) {
    begin_sums(tile);
  }
  {
    const NvtxRange range("bucket_moo combine");
    check_cuda(cuda::launch_part_coefficients(step_.sums_table(), tile.objectives(), parts.parts(), parts.places(),
                                              step_.counters(), parts.coefficients(), stream()),
               "enqueueing the coefficients of parts");
    const auto combine = [&](const cuda::DeviceRows& sums, const cuda::PartPieces& pieces, std::byte* out) {
      check_cuda(cuda::launch_combine_parts(sums, pieces, parts.coefficients(), out, bucket.dtype, stream()),
                 "enqueueing the combination of parts");
    };
    combine(tile.shard(0, bucket.shard_size), parts.shard(), bucket.shard_out);
    combine(tile.tail(), parts.tail(), static_cast<std::byte*>(bucket.tail.mutable_data_ptr()));
  }
  all_gather_shards(bucket);
}

}  // namespace bucket_moo
