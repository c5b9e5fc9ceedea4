#include "collective/objective_tile.hpp"

#include "collective/memory_layout.hpp"
#include "collective/row_norms.hpp"
#include "kernels/accumulate.hpp"
#include "kernels/combine.hpp"
#include "kernels/gramian.hpp"

namespace bucket_moo {
namespace {

/// Adds those of one objective in a pass, [parts, K], to those before.
void fold(std::vector<double>& squares, double decay, const std::vector<double>& of_pass, std::size_t k,
          std::size_t size) {
  squares.resize(of_pass.size() / size);
  for (std::size_t part = 0; part < squares.size(); ++part) {
    squares[part] = decay * decay * squares[part] + of_pass[part * size + k];
  }
}

}  // namespace

void ObjectiveTile::begin(const ShardedBucket& bucket) {
  shard_size_ = bucket.shard_size;
  tail_size_ = bucket.tail_size;
  dtype_ = accumulation_dtype(bucket.dtype);
  passes_ = 0;
  for (Sum& sum : sums_) {
    sum.unit = 0.0;
    sum.shard_squares.clear();
    sum.tail_squares.clear();
  }
}

bool ObjectiveTile::fits(const ShardedBucket& bucket) const {
  return shard_size_ == bucket.shard_size && tail_size_ == bucket.tail_size &&
         dtype_ == accumulation_dtype(bucket.dtype);
}

void ObjectiveTile::begin_pass(const PassRows& pass, const Sections* norms) {
  pass_ = &pass;
  norms_ = norms;
  const std::size_t squares = norms == nullptr ? 0 : static_cast<std::size_t>(norms->parts) * pass.unit.size();
  shard_squares_.assign(squares, 0.0);
  tail_squares_.assign(squares, 0.0);
  if (sums_.size() < pass.unit.size()) {
    sums_.resize(pass.unit.size());
  }
  for (const int k : pass.objective) {
    Sum& sum = sums_[static_cast<std::size_t>(k)];
    if (sum.unit == 0.0) {
      sum.memory.reserve(tail_offset() + static_cast<std::size_t>(tail_size_) * element_size(dtype_));
    }
  }
}

void ObjectiveTile::add_to_shard(const Rows& rows, std::int64_t begin) {
  add(rows, static_cast<std::size_t>(begin) * element_size(dtype_));
  if (norms_ != nullptr) {  // while the rows are in the cache
    add_row_squares(gramian, rows, clip(norms_->shard, begin, rows.size), map_of_pass(), shard_squares_);
  }
}

void ObjectiveTile::add_to_tail(const Rows& rows) {
  add(rows, tail_offset());
  if (norms_ != nullptr) {
    add_row_squares(portable_gramian, rows, norms_->tail, map_of_pass(), tail_squares_);
  }
}

ObjectiveMap ObjectiveTile::map_of_pass() const {
  return {pass_->objective.data(), pass_->coefficient.data(), static_cast<int>(pass_->unit.size())};
}

/// What is kept of a sum in the unit of the pass.
double ObjectiveTile::decay(std::size_t k) const {
  const double decay = sums_[k].unit / pass_->unit[k];
  return decay >= kSmallestShare ? decay : 0.0;
}

void ObjectiveTile::add(const Rows& rows, std::size_t offset) {
  std::vector<const void*> data;
  std::vector<double> coefficients;
  for (std::size_t k = 0; k < pass_->unit.size(); ++k) {
    data.clear();
    coefficients.clear();
    for (std::size_t r = 0; r < pass_->objective.size(); ++r) {
      if (static_cast<std::size_t>(pass_->objective[r]) == k && pass_->coefficient[r] > 0.0) {
        data.push_back(rows.data[r]);
        coefficients.push_back(pass_->coefficient[r]);
      }
    }
    if (!data.empty()) {
      accumulate({data.data(), static_cast<int>(data.size()), rows.size, rows.dtype}, coefficients.data(), decay(k),
                 sums_[k].memory.data() + offset);
    }
  }
}

void ObjectiveTile::end_pass() {
  std::vector<bool> has_rows(pass_->unit.size());
  for (std::size_t r = 0; r < pass_->objective.size(); ++r) {
    if (pass_->coefficient[r] > 0.0) {
      has_rows[static_cast<std::size_t>(pass_->objective[r])] = true;
    }
  }
  for (std::size_t k = 0; k < has_rows.size(); ++k) {
    if (!has_rows[k]) {
      continue;
    }
    if (norms_ != nullptr) {
      fold(sums_[k].shard_squares, decay(k), shard_squares_, k, has_rows.size());
      fold(sums_[k].tail_squares, decay(k), tail_squares_, k, has_rows.size());
    }
    sums_[k].unit = pass_->unit[k];
  }
  pass_ = nullptr;
  norms_ = nullptr;
  ++passes_;
}

std::vector<double> ObjectiveTile::close(const StepObjectives& objectives) {
  k_ = static_cast<std::size_t>(objectives.k());
  if (sums_.size() < k_) {  // it was not in every pass
    sums_.resize(k_);
  }
  std::vector<double> shares;
  for (std::size_t k = 0; k < k_; ++k) {
    shares.push_back(sums_[k].unit > 0.0 ? objectives.share(k, sums_[k].unit) : 0.0);
  }
  return shares;
}

std::vector<double> ObjectiveTile::shard_squares(std::span<const double> shares, int parts) const {
  return squares(&Sum::shard_squares, shares, parts);
}

std::vector<double> ObjectiveTile::tail_squares(std::span<const double> shares, int parts) const {
  return squares(&Sum::tail_squares, shares, parts);
}

std::vector<double> ObjectiveTile::squares(std::vector<double> Sum::* which, std::span<const double> shares,
                                           int parts) const {
  std::vector<double> all(static_cast<std::size_t>(parts) * shares.size());
  for (std::size_t k = 0; k < shares.size(); ++k) {
    const std::vector<double>& own = sums_[k].*which;
    for (std::size_t part = 0; part < own.size(); ++part) {
      all[part * shares.size() + k] = shares[k] * shares[k] * own[part];
    }
  }
  return all;
}

Rows ObjectiveTile::shard(std::int64_t begin, std::int64_t size) {
  return rows_at(static_cast<std::size_t>(begin) * element_size(dtype_), size);
}

Rows ObjectiveTile::tail() { return rows_at(tail_offset(), tail_size_); }

/// A sum that has no rows is nowhere: its share is 0, and it is not read.
Rows ObjectiveTile::rows_at(std::size_t offset, std::int64_t size) {
  rows_.clear();
  for (std::size_t k = 0; k < k_; ++k) {
    rows_.push_back(sums_[k].unit > 0.0 ? sums_[k].memory.data() + offset : nullptr);
  }
  return {rows_.data(), static_cast<int>(rows_.size()), size, dtype_};
}

void combine_sums(const Rows& sums, std::span<const double> shares, std::span<const double> weights, ZeroRows zero_rows,
                  void* out, DType dtype) {
  std::vector<const void*> rows;
  std::vector<double> coefficients;
  for (std::size_t k = 0; k < shares.size(); ++k) {
    if (shares[k] > 0.0) {
      rows.push_back(sums.data[k]);
      coefficients.push_back(weights[k] * shares[k]);
    }
  }
  combine({rows.data(), static_cast<int>(rows.size()), sums.size, sums.dtype}, coefficients.data(), out, dtype,
          zero_rows);
}

std::size_t ObjectiveTile::capacity() const {
  std::size_t bytes = 0;
  for (const Sum& sum : sums_) {
    bytes += sum.memory.capacity();
  }
  return bytes;
}

/// On a cache line of its own, as the shard is.
std::size_t ObjectiveTile::tail_offset() const {
  return round_up(static_cast<std::size_t>(shard_size_) * element_size(dtype_), PersistentBuffer::kAlignment);
}

}  // namespace bucket_moo
