#include "c10d_collective/device_parts.hpp"

#include <ATen/Functions.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "bucket_moo/packed_triangle.hpp"
#include "bucket_moo/supports.hpp"
#include "kernels/rows.hpp"

namespace bucket_moo {
namespace {

/// Elements of a piece at least, and pieces of rows about at most: many blocks, each with enough to do, and not more
/// partial Gramians than can be added up in no time.
constexpr std::int64_t kPiece = 1 << 14;
constexpr std::int64_t kPieces = 1 << 12;
constexpr std::int64_t kLargestPiece = 1 << 30;

/// The pieces of `size` elements, in the order of their parts, and where each part's begin.
std::pair<std::vector<cuda::PartPiece>, std::vector<int>> cut(std::vector<Section> sections, std::int64_t size,
                                                              int parts) {
  std::sort(sections.begin(), sections.end(), [](const Section& a, const Section& b) { return a.begin < b.begin; });
  const std::int64_t piece = std::clamp((size + kPieces - 1) / kPieces, kPiece, kLargestPiece);
  // Cut where 16 bytes begin, as seen from the beginning of the rows.
  const std::int64_t step = (piece + 15) / 16 * 16;
  std::vector<cuda::PartPiece> pieces;
  const auto add = [&](std::int64_t begin, std::int64_t end, int part) {
    while (begin < end) {
      const std::int64_t next = std::min(end, begin / step * step + step);
      pieces.push_back({begin, static_cast<std::int32_t>(next - begin), part});
      begin = next;
    }
  };
  std::int64_t end = 0;
  for (const Section& section : sections) {
    add(end, section.begin, -1);
    add(section.begin, section.begin + section.size, section.part);
    end = section.begin + section.size;
  }
  add(end, size, -1);
  const auto place = [parts](const cuda::PartPiece& one) { return one.part < 0 ? parts : one.part; };
  std::stable_sort(pieces.begin(), pieces.end(),
                   [&](const cuda::PartPiece& a, const cuda::PartPiece& b) { return place(a) < place(b); });
  std::vector<int> first(static_cast<std::size_t>(parts) + 1);
  for (int part = 0; part <= parts; ++part) {
    const auto found = std::lower_bound(pieces.begin(), pieces.end(), part,
                                        [&](const cuda::PartPiece& one, int of) { return place(one) < of; });
    first[static_cast<std::size_t>(part)] = static_cast<int>(found - pieces.begin());
  }
  return {std::move(pieces), std::move(first)};
}

/// Arrays side by side on the host, to be copied in one go.
class Upload {
 public:
  template <class T>
  std::size_t add(const std::vector<T>& values) {
    const std::size_t at = round_up(bytes_.size(), kKernelAlignment);
    bytes_.resize(at + values.size() * sizeof(T));
    if (!values.empty()) {
      std::memcpy(bytes_.data() + at, values.data(), values.size() * sizeof(T));
    }
    return at;
  }
  at::Tensor copy_to(c10::Device device) {
    bytes_.resize(std::max<std::size_t>(bytes_.size(), 1));
    return at::from_blob(bytes_.data(), {static_cast<std::int64_t>(bytes_.size())},
                         at::TensorOptions().dtype(at::kByte))
        .to(at::TensorOptions().device(device), /*non_blocking=*/false, /*copy=*/true);
  }

 private:
  std::vector<std::byte> bytes_;
};

template <class T>
std::vector<T> read_back(const at::Tensor& memory, std::size_t count) {
  const at::Tensor host = memory.cpu();
  std::vector<T> values(count);
  std::memcpy(values.data(), host.const_data_ptr(), count * sizeof(T));
  return values;
}

bool same(const std::vector<Section>& a, const std::vector<Section>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Section& one, const Section& other) {
    return one.begin == other.begin && one.size == other.size && one.part == other.part;
  });
}

}  // namespace

cuda::PartProblems DeviceProblems::lay_out(MemoryLayout& layout, int objectives) const {
  const auto groups = static_cast<std::size_t>(groups_);
  const std::size_t problems = groups * static_cast<std::size_t>(each_);
  const auto k = static_cast<std::size_t>(objectives);
  cuda::PartProblems pointers;
  pointers.groups = groups_;
  pointers.each = each_;
  pointers.capacity = objectives;
  pointers.begun = layout.take<std::int64_t>(groups);
  pointers.count = layout.take<int>(groups);
  pointers.support = layout.take<std::uint64_t>(problems);
  pointers.key = layout.take<std::uint64_t>(problems);
  pointers.packed = layout.take<double>(problems * static_cast<std::size_t>(packed_size(objectives)));
  pointers.result.header = layout.take<StepHeader>(problems);
  pointers.result.solution = layout.take<Solution>(problems);
  pointers.result.gramian = layout.take<double>(problems * k * k);
  pointers.result.weights = layout.take<double>(problems * k);
  return pointers;
}

void DeviceProblems::reserve(int objectives) {
  if (objectives <= pointers_.capacity) {
    return;
  }
  MemoryLayout needed(nullptr);
  lay_out(needed, objectives);
  MemoryLayout layout(buffer_.reserve(needed.used()));
  pointers_ = lay_out(layout, objectives);
}

std::pair<StepHeader, BucketSolution> DeviceProblems::read(std::int64_t problem) const {
  const auto k = static_cast<std::int64_t>(pointers_.capacity);
  const auto part = [&](const auto* first, std::int64_t at, std::size_t count) {
    using T = std::remove_cvref_t<decltype(*first)>;
    return read_back<T>(buffer_.tensor_at(first + at, count * sizeof(T)), count);
  };
  const cuda::BucketResult& first = pointers_.result;
  const StepHeader header = part(first.header, problem, 1)[0];
  const auto size = static_cast<std::size_t>(header.k);
  BucketSolution solution;
  solution.solution = part(first.solution, problem, 1)[0];
  solution.gramian = part(first.gramian, problem * k * k, size * size);
  solution.weights = part(first.weights, problem * k, size);
  return {header, solution};
}

DeviceParts::DeviceParts(c10::Device device, Sections sections, std::int64_t shard_size, std::int64_t tail_size,
                         std::vector<PartsOfProblems> groups)
    : sections_(std::move(sections)),
      shard_size_(shard_size),
      tail_size_(tail_size),
      groups_(std::move(groups)),
      buffer_(device) {
  Upload upload;
  struct Pieces {
    std::size_t all, first;
    int count, in_parts;
  };
  const auto add_pieces = [&](const std::vector<Section>& of_rows, std::int64_t size) {
    const auto [pieces, first] = cut(of_rows, size, sections_.parts);
    return Pieces{upload.add(pieces), upload.add(first), static_cast<int>(pieces.size()), first.back()};
  };
  const Pieces in_shard = add_pieces(sections_.shard, shard_size);
  const Pieces in_tail = add_pieces(sections_.tail, tail_size);
  struct Grouped {
    std::size_t group, hash, begin, part;
  };
  std::vector<Grouped> places;
  for (const PartsOfProblems& of_problems : groups_) {
    std::vector<int> group, begin{0}, part;
    std::vector<std::uint64_t> hash;
    for (const PartsOfProblems::Group& one : of_problems.groups) {
      group.push_back(one.number);
      hash.push_back(one.hash);
      part.insert(part.end(), one.parts.begin(), one.parts.end());
      begin.push_back(static_cast<int>(part.size()));
    }
    places.push_back({upload.add(group), upload.add(hash), upload.add(begin), upload.add(part)});
  }
  std::vector<std::byte> elsewhere(sections_.counted_elsewhere.empty() ? 0 : static_cast<std::size_t>(sections_.parts));
  for (const int part : sections_.counted_elsewhere) {
    elsewhere[static_cast<std::size_t>(part)] = std::byte{1};
  }
  const std::size_t elsewhere_at = upload.add(elsewhere);
  plan_ = upload.copy_to(device);
  const auto* const base = static_cast<const std::byte*>(plan_.const_data_ptr());
  const auto pieces_at = [&](const Pieces& at) {
    return cuda::PartPieces{reinterpret_cast<const cuda::PartPiece*>(base + at.all),
                            reinterpret_cast<const int*>(base + at.first), at.count, at.in_parts, sections_.parts};
  };
  counted_elsewhere_ = elsewhere.empty() ? nullptr : base + elsewhere_at;
  shard_ = pieces_at(in_shard);
  tail_ = pieces_at(in_tail);
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    const Grouped& at = places[i];
    grouped_.push_back({static_cast<int>(groups_[i].groups.size()), reinterpret_cast<const int*>(base + at.group),
                        reinterpret_cast<const std::uint64_t*>(base + at.hash),
                        reinterpret_cast<const int*>(base + at.begin), reinterpret_cast<const int*>(base + at.part)});
  }
}

bool DeviceParts::fits(const Sections& sections, std::int64_t shard_size, std::int64_t tail_size) const {
  return sections_.parts == sections.parts && shard_size_ == shard_size && tail_size_ == tail_size &&
         same(sections_.shard, sections.shard) && same(sections_.tail, sections.tail) &&
         sections_.counted_elsewhere == sections.counted_elsewhere;
}

void DeviceParts::begin(int rows, int limit, std::int64_t begun) {
  begun_ = begun;
  if (rows == rows_ && limit == limit_) {
    return;
  }
  rows_ = rows;
  limit_ = limit;
  const auto parts = static_cast<std::size_t>(sections_.parts);
  const auto stride = static_cast<std::size_t>(packed_size(limit));
  const auto lay_out = [&](MemoryLayout& layout) {
    gramians_ = {layout.take<double>(parts * stride), static_cast<std::int64_t>(stride)};
    of_tail_ = {layout.take<double>(parts * stride), static_cast<std::int64_t>(stride)};
    coefficients_ = layout.take<double>(parts * static_cast<std::size_t>(rows));
    support_ = layout.take<std::uint64_t>(parts);
    places_ = layout.take<cuda::PartPlace>(parts);
  };
  MemoryLayout needed(nullptr);
  lay_out(needed);
  MemoryLayout layout(buffer_.reserve(needed.used()));
  lay_out(layout);
}

std::size_t DeviceParts::message_bytes() const {
  return round_up(static_cast<std::size_t>(sections_.parts * gramians_.stride) * sizeof(double), kKernelAlignment);
}

std::vector<DeviceParts::Part> DeviceParts::read(int k) const {
  const auto count = static_cast<std::size_t>(sections_.parts);
  const auto stride = static_cast<std::size_t>(gramians_.stride);
  const auto places = read_back<cuda::PartPlace>(buffer_.tensor_at(places_, count * sizeof(cuda::PartPlace)), count);
  const auto packed =
      read_back<double>(buffer_.tensor_at(gramians_.packed, count * stride * sizeof(double)), count * stride);
  std::vector<Part> parts;
  for (std::size_t p = 0; p < count; ++p) {
    Part part{places[p].problem, std::vector<double>(static_cast<std::size_t>(k) * static_cast<std::size_t>(k))};
    for (int i = 0; i < k; ++i) {
      for (int j = 0; j < k; ++j) {
        part.gramian[static_cast<std::size_t>(i * k + j)] =
            packed[p * stride + static_cast<std::size_t>(packed_index(std::max(i, j), std::min(i, j)))];
      }
    }
    parts.push_back(std::move(part));
  }
  return parts;
}

}  // namespace bucket_moo
