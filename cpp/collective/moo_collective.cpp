#include "collective/moo_collective.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>

#include "bucket_moo/lanes.hpp"
#include "bucket_moo/packed_triangle.hpp"
#include "bucket_moo/solve.hpp"
#include "collective/memory_layout.hpp"
#include "collective/profiler_scope.hpp"
#include "collective/section_rows.hpp"
#include "kernels/combine.hpp"
#include "kernels/gramian.hpp"

namespace bucket_moo {
namespace {

/// Adds the upper triangles of packed Gramians to full symmetric ones, [parts, k, k].
void add_packed(const std::byte* packed, int k, std::vector<double>& gramians) {
  const std::size_t part = static_cast<std::size_t>(k) * static_cast<std::size_t>(k);
  for (std::size_t base = 0; base < gramians.size(); base += part) {
    for (int i = 0; i < k; ++i) {
      for (int j = i; j < k; ++j) {
        double value = 0.0;
        std::memcpy(&value, packed, sizeof(value));
        packed += sizeof(value);
        gramians[base + static_cast<std::size_t>(i * k + j)] += value;
        if (i != j) {
          gramians[base + static_cast<std::size_t>(j * k + i)] += value;
        }
      }
    }
  }
}

void pack(const std::vector<double>& gramians, int k, std::byte* packed) {
  const std::size_t part = static_cast<std::size_t>(k) * static_cast<std::size_t>(k);
  for (std::size_t base = 0; base < gramians.size(); base += part) {
    for (int i = 0; i < k; ++i) {
      const std::size_t row = static_cast<std::size_t>(k - i) * sizeof(double);
      std::memcpy(packed, &gramians[base + static_cast<std::size_t>(i * k + i)], row);
      packed += row;
    }
  }
}

void add_squares(const std::byte* packed, std::vector<double>& squares) {
  for (double& sum : squares) {
    double value = 0.0;
    std::memcpy(&value, packed, sizeof(value));
    packed += sizeof(value);
    sum += value;
  }
}

void copy_squares(const std::vector<double>& squares, std::byte* packed) {
  if (!squares.empty()) {
    std::memcpy(packed, squares.data(), squares.size() * sizeof(double));
  }
}

/// Of Gramians of k objectives, [parts, k, k].
std::size_t packed_bytes(const std::vector<double>& gramians, int k) {
  const std::size_t part = static_cast<std::size_t>(k) * static_cast<std::size_t>(k);
  return gramians.size() / part * static_cast<std::size_t>(packed_size(k)) * sizeof(double);
}

/// Adds the Gramian of every section to that of its part.
void add_gramians(GramianKernel kernel, const Rows& rows, std::span<const Section> sections, const ObjectiveMap& map,
                  std::vector<double>& gramians) {
  const ProfilerScope stage("bucket_moo gramian");
  std::vector<double> of_section(static_cast<std::size_t>(map.k) * static_cast<std::size_t>(map.k));
  for (const Section& section : sections) {
    kernel(SectionRows(rows, section).rows(), map, of_section.data());
    double* const sum = &gramians[static_cast<std::size_t>(section.part) * of_section.size()];
    std::transform(of_section.begin(), of_section.end(), sum, sum, std::plus<>());
  }
}

}  // namespace

MooCollective::MooCollective(std::shared_ptr<Transport> transport, Method method, std::shared_ptr<Transport> pieces,
                             bool takes_row_norms)
    : transport_(std::move(transport)),
      pieces_(std::move(pieces)),
      method_(method),
      takes_row_norms_(takes_row_norms),
      rank_(transport_ ? transport_->rank() : 0),
      world_(transport_ ? transport_->size() : 1),
      tail_rows_(static_cast<std::size_t>(world_)),
      coefficients_(static_cast<std::size_t>(world_)) {}

std::vector<StepRecord> MooCollective::begin_pass(const StepRecord& own) {
  std::vector<StepRecord> records = gather_records(transport_.get(), own);
  objectives_ = read_objectives(records);
  return records;
}

BucketSolution MooCollective::all_reduce(void* bucket, std::int64_t n, DType dtype, const RandomKey& key,
                                         std::int64_t tile_limit, double* state) {
  const ShardedBucket sharded = sharded_in_place(bucket, n, dtype, rank_, world_, tile_limit);
  BucketSolution result = reduce(sharded, key, state);
  all_gather_shards(sharded);
  return result;
}

void MooCollective::all_gather_shards(const ShardedBucket& bucket) {
  if (transport_) {
    const ProfilerScope stage("bucket_moo all_gather");
    // In place: shards are where the bucket's memory begins, and were read from there.
    transport_->all_gather(const_cast<std::byte*>(bucket.shards), bucket.shard_bytes());
  }
}

BucketSolution MooCollective::reduce_scatter(void* output, const void* input, std::int64_t shard, DType dtype,
                                             const RandomKey& key, std::int64_t tile_limit, double* state) {
  return reduce(sharded_apart(output, input, shard, dtype, world_, tile_limit), key, state);
}

BucketSolution MooCollective::reduce(const ShardedBucket& bucket, const RandomKey& key, double* state) {
  const Sections sections = one_part(bucket.shard_size, bucket.tail_size);
  BucketSolution result = empty_solution(objectives_.k());
  result.gramian = part_gramians(bucket, sections);
  result.norms = row_norms();
  solve(key, state, result);
  combine_parts(bucket, sections, result.weights);
  return result;
}

/// The tile holds the last piece on return, and the messages the tails.
std::vector<double> MooCollective::part_gramians(const ShardedBucket& bucket, const Sections& sections) {
  const auto k = static_cast<std::size_t>(objectives_.k());
  std::vector<double> gramians(static_cast<std::size_t>(sections.parts) * k * k);
  begin_row_norms(sections);
  for (std::int64_t begin = 0; begin < bucket.shard_size; begin += bucket.piece) {
    tile_.start(transport_.get(), Transport::Sequence::main, bucket, begin);
    const Rows rows = tile_.wait();
    const std::vector<Section> parts = clip(sections.shard, begin, rows.size);
    add_gramians(gramian, rows, parts, objectives_.map(), gramians);
    add_row_norms(gramian, rows, parts);
  }
  exchange_partials(bucket, sections, gramians);
  return gramians;
}

void MooCollective::combine_parts(const ShardedBucket& bucket, const Sections& sections,
                                  std::span<const double> weights) {
  // Backwards: the last piece is still in the tile, and only its successors need to be exchanged once more.
  const std::int64_t last = bucket.shard_size == 0 ? -1 : (bucket.shard_size - 1) / bucket.piece * bucket.piece;
  for (std::int64_t begin = last; begin >= 0; begin -= bucket.piece) {
    if (begin != last) {
      tile_.start(transport_.get(), Transport::Sequence::main, bucket, begin);
    }
    const Rows rows = tile_.wait();
    combine_sections(rows, clip(sections.shard, begin, rows.size), weights, bucket.element_out(begin));
  }
  combine_sections({tail_rows_.data(), world_, bucket.tail_size, bucket.dtype}, sections.tail, weights,
                   bucket.tail_out);
}

void MooCollective::combine_sections(const Rows& rows, std::span<const Section> sections,
                                     std::span<const double> weights, std::byte* out) {
  const ProfilerScope stage("bucket_moo combine");
  const auto k = static_cast<std::size_t>(objectives_.k());
  for (const Section& section : sections) {
    set_coefficients(weights.subspan(static_cast<std::size_t>(section.part) * k, k));
    combine(SectionRows(rows, section).rows(), coefficients_.data(),
            out + static_cast<std::size_t>(section.begin) * element_size(rows.dtype));
  }
}

BucketSolution MooCollective::empty_solution(int k) {
  const auto size = static_cast<std::size_t>(k);
  BucketSolution result;
  result.gramian.resize(size * size);
  result.weights.resize(size);
  return result;
}

/// For a pass that is a step of its own.
void MooCollective::begin_row_norms(const Sections& sections) {
  if (takes_row_norms_) {
    norms_.squares.assign(static_cast<std::size_t>(sections.parts) * static_cast<std::size_t>(objectives_.k()), 0.0);
    norms_.shares = squared_shares(objectives_.objective, objectives_.share, objectives_.k());
  }
}

void MooCollective::add_row_norms(GramianKernel kernel, const Rows& rows, std::span<const Section> sections) {
  if (takes_row_norms_) {
    add_row_squares(kernel, rows, sections, objectives_.map(), norms_.squares);
  }
}

/// On entry `gramians` are this rank's partial ones, on return those of the whole bucket; returns the rows of the tail.
Rows MooCollective::exchange_partials(const ShardedBucket& bucket, const Sections& sections,
                                      std::vector<double>& gramians) {
  const int k = objectives_.k();
  gather_partials(k, bucket.tail_bytes(), bucket.tail, gramians);
  const Rows tails{tail_rows_.data(), world_, bucket.tail_size, bucket.dtype};
  std::fill(gramians.begin(), gramians.end(), 0.0);
  std::fill(norms_.squares.begin(), norms_.squares.end(), 0.0);
  add_gramians(portable_gramian, tails, sections.tail, objectives_.map(), gramians);
  add_row_norms(portable_gramian, tails, sections.tail);
  add_partials(k, gramians);
  add_pieces(sections, k, gramians);
  return tails;
}

/// One message a rank: its partial Gramians, with squares of rows where they are taken, then its tail.
void MooCollective::gather_partials(int k, std::size_t tail_bytes, const std::byte* tail,
                                    const std::vector<double>& gramians) {
  const std::size_t gramian_bytes = packed_bytes(gramians, k);
  const std::size_t partial_bytes = gramian_bytes + norms_.squares.size() * sizeof(double);
  message_bytes_ = round_up(partial_bytes + tail_bytes, sizeof(double));
  std::byte* const messages = messages_.reserve(static_cast<std::size_t>(world_) * message_bytes_);
  std::byte* const own = messages + static_cast<std::size_t>(rank_) * message_bytes_;
  pack(gramians, k, own);
  copy_squares(norms_.squares, own + gramian_bytes);
  if (tail_bytes > 0) {
    std::memcpy(own + partial_bytes, tail, tail_bytes);
  }
  std::memset(own + partial_bytes + tail_bytes, 0, message_bytes_ - partial_bytes - tail_bytes);
  if (transport_) {
    const ProfilerScope stage("bucket_moo exchange");
    transport_->all_gather(messages, message_bytes_);
  }
  for (std::size_t r = 0; r < tail_rows_.size(); ++r) {
    tail_rows_[r] = messages + r * message_bytes_ + partial_bytes;
  }
}

/// Rank order and float64: the same sum, to the bit, on every rank, whatever its processor.
void MooCollective::add_partials(int k, std::vector<double>& gramians) {
  for (std::size_t r = 0; r < tail_rows_.size(); ++r) {
    const std::byte* const message = messages_.data() + r * message_bytes_;
    add_packed(message, k, gramians);
    add_squares(message + packed_bytes(gramians, k), norms_.squares);
  }
}

/// The Gramians of this group's piece become those of all pieces. In rank order too: the groups agree to the bit.
void MooCollective::add_pieces(const Sections& sections, int k, std::vector<double>& gramians) {
  if (!pieces_) {
    return;
  }
  const auto size = static_cast<std::ptrdiff_t>(k) * k;
  for (const int part : sections.counted_elsewhere) {
    std::fill_n(gramians.begin() + part * size, size, 0.0);
    if (takes_row_norms_) {
      std::fill_n(norms_.squares.begin() + static_cast<std::ptrdiff_t>(part) * k, k, 0.0);
    }
  }
  const std::size_t gramian_bytes = packed_bytes(gramians, k);
  const std::size_t bytes = gramian_bytes + norms_.squares.size() * sizeof(double);
  const auto pieces = static_cast<std::size_t>(pieces_->size());
  std::byte* const all = piece_gramians_.reserve(pieces * bytes);
  std::byte* const own = all + static_cast<std::size_t>(pieces_->rank()) * bytes;
  pack(gramians, k, own);
  copy_squares(norms_.squares, own + gramian_bytes);
  {
    const ProfilerScope stage("bucket_moo exchange");
    pieces_->all_gather(all, bytes);
  }
  std::fill(gramians.begin(), gramians.end(), 0.0);
  std::fill(norms_.squares.begin(), norms_.squares.end(), 0.0);
  for (std::size_t p = 0; p < pieces; ++p) {
    add_packed(all + p * bytes, k, gramians);
    add_squares(all + p * bytes + gramian_bytes, norms_.squares);
  }
}

void MooCollective::solve(const RandomKey& key, double* state, BucketSolution& result) {
  const ProfilerScope stage("bucket_moo solve");
  const auto k = static_cast<int>(result.weights.size());
  solver_scratch_.resize(solve_scratch_size(k));
  result.solution = bucket_moo::solve(HostLanes{}, method_, key, k, result.gramian.data(), result.weights.data(),
                                      solver_scratch_.data(), state);
}

void MooCollective::set_coefficients(std::span<const double> weights) {
  for (std::size_t r = 0; r < coefficients_.size(); ++r) {
    coefficients_[r] = weights[static_cast<std::size_t>(objectives_.objective[r])] * objectives_.share[r];
  }
}

void MooCollective::accumulate(const ShardedBucket& bucket, const PassRows& pass, const Sections& sections,
                               ObjectiveTile& tile) {
  const ProfilerScope stage("bucket_moo accumulate");
  tile.begin_pass(pass, takes_row_norms_ ? &sections : nullptr);
  const auto tails = start_tails(bucket);
  stream_shard(bucket, [&](const Rows& rows, std::int64_t begin) { tile.add_to_shard(rows, begin); });
  tails->wait();
  tile.add_to_tail({tail_rows_.data(), world_, bucket.tail_size, bucket.dtype});
  tile.end_pass();
}

TileGramian MooCollective::exchange_gramian(ObjectiveTile& tile, const StepObjectives& objectives) {
  const Sections whole = one_part(tile.shard_size(), tile.tail_size());
  auto [gramian, shares] = exchange_gramians(tile, objectives, whole);
  TileGramian result{empty_solution(objectives.k()), std::move(shares)};
  result.solution.gramian = std::move(gramian);
  result.solution.norms = row_norms();
  return result;
}

PartGramians MooCollective::exchange_gramians(ObjectiveTile& tile, const StepObjectives& objectives,
                                              const Sections& sections) {
  const int k = objectives.k();
  const auto size = static_cast<std::size_t>(k);
  PartGramians result{std::vector<double>(static_cast<std::size_t>(sections.parts) * size * size),
                      tile.close(objectives)};
  std::vector<int> own(size);  // every objective is a row of its own
  std::iota(own.begin(), own.end(), 0);
  const ObjectiveMap map{own.data(), result.shares.data(), k};
  std::vector<double>& sum = result.gramians;
  std::vector<double> tail_squares;
  if (takes_row_norms_) {
    norms_ = {tile.shard_squares(result.shares, sections.parts), objectives.squared_shares()};
    tail_squares = tile.tail_squares(result.shares, sections.parts);
  }
  const bool has_shards = tile.shard_size() > 0;
  if (has_shards) {
    add_gramians(gramian, tile.shard(0, tile.shard_size()), sections.shard, map, sum);
    gather_partials(k, 0, nullptr, sum);
    std::fill(sum.begin(), sum.end(), 0.0);
  }
  norms_.squares = std::move(tail_squares);
  add_gramians(portable_gramian, tile.tail(), sections.tail, map, sum);
  if (has_shards) {
    add_partials(k, sum);
  }
  add_pieces(sections, k, sum);
  return result;
}

void MooCollective::combine_tile(ObjectiveTile& tile, std::span<const double> shares, std::span<const double> weights,
                                 ZeroRows zero_rows, const ShardedBucket& bucket) {
  const ProfilerScope stage("bucket_moo combine");
  combine_sums(tile.shard(0, bucket.shard_size), shares, weights, zero_rows, bucket.shard_out, bucket.dtype);
  combine_sums(tile.tail(), shares, weights, zero_rows, bucket.tail_out, bucket.dtype);
}

void MooCollective::combine_tile(ObjectiveTile& tile, std::span<const double> shares, std::span<const double> weights,
                                 const Sections& sections, const ShardedBucket& bucket) {
  const ProfilerScope stage("bucket_moo combine");
  const auto combine_all = [&](const Rows& rows, std::span<const Section> sections_of_rows, std::byte* out) {
    for (const Section& section : sections_of_rows) {
      combine_sums(SectionRows(rows, section).rows(), shares,
                   weights.subspan(static_cast<std::size_t>(section.part) * shares.size(), shares.size()),
                   ZeroRows::skip, out + static_cast<std::size_t>(section.begin) * element_size(bucket.dtype),
                   bucket.dtype);
    }
  };
  combine_all(tile.shard(0, bucket.shard_size), sections.shard, bucket.shard_out);
  combine_all(tile.tail(), sections.tail, bucket.tail_out);
}

std::size_t MooCollective::scratch_bytes() const {
  std::size_t bytes = tile_.capacity() + next_tile_.capacity() + messages_.capacity() + tails_.capacity() +
                      piece_gramians_.capacity() + columns_.capacity();
  for (const auto& sketched : free_sketches_) {
    bytes += sketched->columns_.capacity() + sketched->tile_.capacity();
  }
  return bytes;
}

}  // namespace bucket_moo
