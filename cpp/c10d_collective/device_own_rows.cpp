#include "c10d_collective/device_own_rows.hpp"

#include <algorithm>

#include "kernels/accumulate.hpp"

namespace bucket_moo {

void DeviceOwnRows::begin(std::int64_t n, DType dtype, bool in_one_sum) {
  n_ = n;
  dtype_ = dtype;
  in_one_sum_ = in_one_sum;
  any_ = false;
  names_.clear();
  facts_.reserve(sizeof(Facts));
  if (in_one_sum) {
    sums_.clear();
    one_.reserve(static_cast<std::size_t>(n) * element_size(accumulation_dtype(dtype)));
  } else {
    one_.release();
  }
}

/// A step of more objectives than there may be has an error, which every rank hears of: its rows may go anywhere.
std::size_t DeviceOwnRows::place_of(const ObjectiveName& objective) {
  const auto found =
      std::find_if(names_.begin(), names_.end(), [&](const ObjectiveName& name) { return same_name(name, objective); });
  const auto place = static_cast<std::size_t>(found - names_.begin());
  return std::min(place, static_cast<std::size_t>(kMaxObjectives) - 1);
}

DeviceOwnRows::Place DeviceOwnRows::add(const ObjectiveName& objective) {
  Place place = {};
  place.row.addition = &facts()->addition;
  if (in_one_sum_) {
    place.sum = one_.data();
    place.row.fresh = !any_;
    any_ = true;
    return place;
  }
  const std::size_t at = place_of(objective);
  place.row.fresh = at == names_.size();
  if (place.row.fresh) {
    names_.push_back(objective);
  }
  if (sums_.size() <= at) {
    sums_.emplace_back(device_);
  }
  place.sum = sums_[at].reserve(static_cast<std::size_t>(n_) * element_size(accumulation_dtype(dtype_)));
  place.row.number = &facts()->number[at];
  place.row.unit = &facts()->unit[at];
  return place;
}

DeviceOwnRows::Place DeviceOwnRows::take_as_it_is() {
  sums_.clear();
  Place place = {};
  place.row.number = &facts()->number[0];
  place.row.unit = &facts()->unit[0];
  return place;
}

cuda::DeviceRows DeviceOwnRows::sums() const {
  cuda::DeviceRows rows;
  rows.size = n_;
  rows.dtype = accumulation_dtype(dtype_);
  rows.count = in_one_sum_ ? 1 : static_cast<int>(names_.size());
  for (int i = 0; i < rows.count; ++i) {
    rows.scattered[i] = in_one_sum_ ? one_.data() : sums_[static_cast<std::size_t>(i)].data();
  }
  return rows;
}

std::size_t DeviceOwnRows::capacity() const {
  std::size_t bytes = one_.capacity() + facts_.capacity();
  for (const DeviceBuffer& sum : sums_) {
    bytes += sum.capacity();
  }
  return bytes;
}

}  // namespace bucket_moo
