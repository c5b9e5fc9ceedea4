// What a device keeps of buckets whose parts have weights of their own.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "c10d_collective/device_memory.hpp"
#include "collective/memory_layout.hpp"
#include "collective/moo_collective.hpp"
#include "collective/sections.hpp"
#include "parts.cuh"

namespace bucket_moo {

/// Problems of groups of parameters, whose Gramians and results stay on the device. Its memory grows with the number of
/// objectives that there is room for: between steps only, for what was in it is lost then.
class DeviceProblems {
 public:
  /// `each`: problems of a group at most.
  DeviceProblems(c10::Device device, int groups, int each) : groups_(groups), each_(each), buffer_(device) {}

  void reserve(int objectives);
  const cuda::PartProblems& pointers() const { return pointers_; }
  int groups() const { return groups_; }
  int each() const { return each_; }
  std::size_t capacity() const { return buffer_.capacity(); }

  /// The result of a problem. Waits for the current stream.
  std::pair<StepHeader, BucketSolution> read(std::int64_t problem) const;

 private:
  cuda::PartProblems lay_out(MemoryLayout& layout, int objectives) const;

  int groups_;
  int each_;
  DeviceBuffer buffer_;
  cuda::PartProblems pointers_ = {};
};

/// Parts of a bucket that belong to groups of the same DeviceProblems.
struct PartsOfProblems {
  struct Group {
    int number;          ///< among the problems'
    std::uint64_t hash;  ///< of its name
    std::vector<int> parts;
  };

  std::shared_ptr<DeviceProblems> problems;
  std::vector<Group> groups;
};

/// The parts of one bucket, as far as they lie on this rank, and their Gramians.
class DeviceParts {
 public:
  /// `sections`: in shards and tails of these sizes.
  DeviceParts(c10::Device device, Sections sections, std::int64_t shard_size, std::int64_t tail_size,
              std::vector<PartsOfProblems> groups);

  /// Whether it was made for such a bucket.
  bool fits(const Sections& sections, std::int64_t shard_size, std::int64_t tail_size) const;

  /// Room for so many objectives: in rows of sums, and in what ranks send each other. What is known of the parts is
  /// from now on that of step `begun`.
  void begin(int rows, int limit, std::int64_t begun);
  std::int64_t begun() const { return begun_; }

  int parts() const { return sections_.parts; }
  const cuda::PartPieces& shard() const { return shard_; }
  const cuda::PartPieces& tail() const { return tail_; }
  /// [parts], device: other than 0 for copies whose Gramians count elsewhere; nullptr: there are none.
  const std::byte* counted_elsewhere() const { return counted_elsewhere_; }
  const std::vector<PartsOfProblems>& groups() const { return groups_; }
  /// As many as groups().
  const std::vector<cuda::GroupedParts>& grouped() const { return grouped_; }

  const cuda::PartGramians& gramians() const { return gramians_; }  ///< of the whole bucket
  const cuda::PartGramians& of_tail() const { return of_tail_; }    ///< scratch
  double* coefficients() const { return coefficients_; }            ///< [parts, rows]
  std::uint64_t* support() const { return support_; }               ///< [parts]
  cuda::PartPlace* places() const { return places_; }               ///< [parts]
  std::size_t message_bytes() const;                                ///< of the Gramians of all parts
  std::size_t capacity() const { return plan_.nbytes() + buffer_.capacity(); }

  /// What is known of every part: its problem's number, and its Gramian [k, k]. Waits for the current stream.
  struct Part {
    std::int64_t problem;
    std::vector<double> gramian;
  };
  std::vector<Part> read(int k) const;

 private:
  Sections sections_;
  std::int64_t shard_size_;
  std::int64_t tail_size_;
  std::vector<PartsOfProblems> groups_;
  at::Tensor plan_;  // bytes, which the pointers below are to
  cuda::PartPieces shard_;
  cuda::PartPieces tail_;
  const std::byte* counted_elsewhere_ = nullptr;
  std::vector<cuda::GroupedParts> grouped_;
  DeviceBuffer buffer_;
  int rows_ = 0;
  int limit_ = 0;
  std::int64_t begun_ = 0;
  cuda::PartGramians gramians_;
  cuda::PartGramians of_tail_;
  double* coefficients_ = nullptr;
  std::uint64_t* support_ = nullptr;
  cuda::PartPlace* places_ = nullptr;
};

}  // namespace bucket_moo
