#include "collective/objective_tile.hpp"

#include "collective/memory_layout.hpp"
#include "kernels/accumulate.hpp"
#include "kernels/combine.hpp"

namespace bucket_moo {

void ObjectiveTile::begin(const ShardedBucket& bucket) {
  shard_size_ = bucket.shard_size;
  tail_size_ = bucket.tail_size;
  dtype_ = accumulation_dtype(bucket.dtype);
  passes_ = 0;
  for (Sum& sum : sums_) {
    sum.unit = 0.0;
  }
}

bool ObjectiveTile::fits(const ShardedBucket& bucket) const {
  return shard_size_ == bucket.shard_size && tail_size_ == bucket.tail_size &&
         dtype_ == accumulation_dtype(bucket.dtype);
}

void ObjectiveTile::begin_pass(const PassRows& pass) {
  pass_ = &pass;
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
}

void ObjectiveTile::add_to_tail(const Rows& rows) { add(rows, tail_offset()); }

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
      const double decay = sums_[k].unit / pass_->unit[k];
      accumulate({data.data(), static_cast<int>(data.size()), rows.size, rows.dtype}, coefficients.data(),
                 decay >= kSmallestShare ? decay : 0.0, sums_[k].memory.data() + offset);
    }
  }
}

void ObjectiveTile::end_pass() {
  for (std::size_t r = 0; r < pass_->objective.size(); ++r) {
    if (pass_->coefficient[r] > 0.0) {
      const auto k = static_cast<std::size_t>(pass_->objective[r]);
      sums_[k].unit = pass_->unit[k];
    }
  }
  pass_ = nullptr;
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
