// XLA's buffers as the kernels read them. A buffer may have batch dimensions in front, the same in all of a call.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <stdexcept>

#include "kernels/rows.hpp"
#include "methods/message.hpp"
#include "xla/ffi/api/ffi.h"

namespace bucket_moo::jax {

namespace ffi = xla::ffi;

inline constexpr Require require{"bucket_moo_ext: "};

/// Calls the function; what it throws becomes XLA's error.
template <class Function>
ffi::Error guarded(const Function& function) noexcept {
  try {
    function();
    return ffi::Error::Success();
  } catch (const std::invalid_argument& error) {
    return ffi::Error::InvalidArgument(error.what());
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
}

inline DType dtype_of(ffi::AnyBuffer buffer) {
  switch (buffer.element_type()) {
    case ffi::F32:
      return DType::float32;
    case ffi::BF16:
      return DType::bfloat16;
    case ffi::F16:
      return DType::float16;
    case ffi::F64:
      return DType::float64;
    default:
      throw std::invalid_argument("bucket_moo_ext: rows must be float32, bfloat16, float16 or float64");
  }
}

/// The size of a dimension, counted from the last one, which is 0.
inline std::int64_t size_from_last(ffi::AnyBuffer buffer, std::size_t from_last) {
  const auto sizes = buffer.dimensions();
  require(sizes.size() > from_last, "a buffer has ", sizes.size(), " dimensions, fewer than ", from_last + 1);
  return sizes[sizes.size() - 1 - from_last];
}

/// How many problems a buffer holds whose own dimensions are the last `own`.
inline std::int64_t batch_of(ffi::AnyBuffer buffer, std::size_t own) {
  const auto sizes = buffer.dimensions();
  require(sizes.size() >= own, "a buffer has ", sizes.size(), " dimensions, fewer than ", own);
  std::int64_t batch = 1;
  for (std::size_t i = 0; i + own < sizes.size(); ++i) batch *= sizes[i];
  return batch;
}

/// Numbers in float64, whatever holds them: float32, float64, or two uint32 a number, its bits with the low word first
/// (the last dimension), since JAX has no float64 by default.
class Doubles {
 public:
  /// `own`: dimensions of one problem, without that of the two words.
  Doubles(ffi::AnyBuffer buffer, std::size_t own)
      : data_(buffer.untyped_data()), type_(buffer.element_type()), own_(own + (type_ == ffi::U32 ? 1 : 0)) {
    require(type_ == ffi::F32 || type_ == ffi::F64 || type_ == ffi::U32, "numbers must be float32, float64 or uint32");
    require(type_ != ffi::U32 || size_from_last(buffer, 0) == 2, "uint32 numbers must come in pairs");
    batch_ = batch_of(buffer, own_);
    problem_ = 1;
    for (std::size_t i = own_ - own; i < own_; ++i) problem_ *= size_from_last(buffer, i);
  }

  std::int64_t batch() const { return batch_; }
  /// Numbers of one problem.
  std::int64_t problem() const { return problem_; }
  void* data() const { return data_; }
  bool is_float32() const { return type_ == ffi::F32; }

  double get(std::int64_t i) const {
    if (type_ == ffi::F32) return static_cast<const float*>(data_)[i];
    if (type_ == ffi::F64) return static_cast<const double*>(data_)[i];
    const auto* const words = static_cast<const std::uint32_t*>(data_) + 2 * i;
    return std::bit_cast<double>(words[0] | std::uint64_t{words[1]} << 32);
  }

  void set(std::int64_t i, double value) const {
    if (type_ == ffi::F32) {
      static_cast<float*>(data_)[i] = static_cast<float>(value);
    } else if (type_ == ffi::F64) {
      static_cast<double*>(data_)[i] = value;
    } else {
      const auto bits = std::bit_cast<std::uint64_t>(value);
      auto* const words = static_cast<std::uint32_t*>(data_) + 2 * i;
      words[0] = static_cast<std::uint32_t>(bits);
      words[1] = static_cast<std::uint32_t>(bits >> 32);
    }
  }

 private:
  void* data_;
  ffi::DataType type_;
  std::size_t own_;
  std::int64_t batch_ = 0;
  std::int64_t problem_ = 0;
};

/// Unsigned 64-bit words as pairs of uint32, the low half first: `key[problem]` has seed, step and bucket.
inline std::uint64_t word_of(ffi::AnyBuffer keys, std::int64_t problem, int which) {
  const auto* const halves = static_cast<const std::uint32_t*>(keys.untyped_data()) + 6 * problem + 2 * which;
  return halves[0] | std::uint64_t{halves[1]} << 32;
}

inline void check_keys(ffi::AnyBuffer keys, std::int64_t batch) {
  require(keys.element_type() == ffi::U32 && size_from_last(keys, 0) == 6 && batch_of(keys, 1) == batch,
          "keys must be uint32 [6] a problem");
}

/// The matrices [R, n] of a buffer [..., R, n], row by row.
class RowsOf {
 public:
  explicit RowsOf(ffi::AnyBuffer buffer)
      : data_(static_cast<std::byte*>(buffer.untyped_data())),
        dtype_(dtype_of(buffer)),
        count_(size_from_last(buffer, 1)),
        size_(size_from_last(buffer, 0)),
        batch_(batch_of(buffer, 2)) {}

  std::int64_t batch() const { return batch_; }
  std::int64_t count() const { return count_; }
  std::int64_t size() const { return size_; }
  DType dtype() const { return dtype_; }
  std::byte* row(std::int64_t problem, std::int64_t r) const {
    return data_ + (problem * count_ + r) * size_ * static_cast<std::int64_t>(element_size(dtype_));
  }

 private:
  std::byte* data_;
  DType dtype_;
  std::int64_t count_, size_, batch_;
};

}  // namespace bucket_moo::jax
