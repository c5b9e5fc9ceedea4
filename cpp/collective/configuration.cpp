#include "collective/configuration.hpp"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <sstream>

#include "collective/agreed_error.hpp"

namespace bucket_moo {
namespace {

constexpr char kFieldEnd = '\x1e';  // ASCII record and unit separators: no printed value contains them
constexpr char kNameEnd = '\x1f';

std::string serialize(const Configuration& configuration) {
  std::string text;
  for (const auto& [name, value] : configuration) {
    text += name + kNameEnd + value + kFieldEnd;
  }
  return text;
}

std::map<std::string, std::string> parse(const std::string& text) {
  std::map<std::string, std::string> fields;
  std::istringstream stream(text);
  for (std::string field; std::getline(stream, field, kFieldEnd);) {
    const std::size_t split = field.find(kNameEnd);
    fields[field.substr(0, split)] = field.substr(split + 1);
  }
  return fields;
}

// Says that a length is one: what comes before anything else from another rank may be of another build, or no message
// of ours at all.
constexpr std::int64_t kLengthMark = std::int64_t{0x4d6f4f31} << 32;
constexpr std::int64_t kLongest = 1 << 20;

std::int64_t length_of(std::int64_t message, int from) {
  const std::int64_t length = message - kLengthMark;
  TORCH_CHECK_VALUE(length >= 0 && length <= kLongest, "bucket_moo_ext: what rank ", from,
                    " sent is no configuration of this version of bucket_moo_ext; ranks of one group must run the same "
                    "build");
  return length;
}

/// Every rank's text.
std::vector<std::string> gather(int rank, int world, const AllGather& all_gather, const std::string& own) {
  const at::Tensor lengths = at::zeros({world}, at::kLong);
  auto* const length = lengths.mutable_data_ptr<std::int64_t>();
  const auto size = static_cast<std::int64_t>(own.size());
  TORCH_CHECK_VALUE(size <= kLongest, "bucket_moo_ext: the configuration must be printed in ", kLongest,
                    " bytes at most; got ", size);
  length[rank] = kLengthMark + size;
  all_gather(lengths);
  std::int64_t longest = 0;
  for (int r = 0; r < world; ++r) {
    length[r] = length_of(length[r], r);
    longest = std::max(longest, length[r]);
  }
  const at::Tensor blocks = at::zeros({world, longest}, at::kByte);
  auto* const text = reinterpret_cast<char*>(blocks.mutable_data_ptr<std::uint8_t>());
  std::memcpy(text + rank * longest, own.data(), own.size());
  all_gather(blocks);
  std::vector<std::string> texts;
  for (int r = 0; r < world; ++r) {
    texts.emplace_back(text + r * longest, static_cast<std::size_t>(length[r]));
  }
  return texts;
}

}  // namespace

Configuration of_whole_model(Configuration configuration) {
  std::erase_if(configuration, [](const auto& field) { return field.first == kPlaceOfPiece; });
  return configuration;
}

void check_same_configuration(int rank, int world, const AllGather& all_gather, const Configuration& configuration) {
  if (world == 1) {
    return;
  }
  std::vector<std::map<std::string, std::string>> by_rank;
  for (const std::string& text : gather(rank, world, all_gather, serialize(configuration))) {
    by_rank.push_back(parse(text));
  }
  std::ostringstream differences;
  for (const auto& [name, unused] : configuration) {
    std::map<std::string, std::vector<std::size_t>> ranks_by_value;
    for (std::size_t r = 0; r < by_rank.size(); ++r) {
      const auto found = by_rank[r].find(name);
      ranks_by_value[found == by_rank[r].end() ? "(absent)" : found->second].push_back(r);
    }
    if (ranks_by_value.size() == 1) {
      continue;
    }
    differences << "\n  " << name << ":";
    for (const auto& [value, ranks] : ranks_by_value) {
      differences << " " << value << " on rank";
      for (const std::size_t r : ranks) {
        differences << " " << r;
      }
      differences << ";";
    }
  }
  if (!differences.str().empty()) {
    throw AgreedError("bucket_moo_ext: the configuration must be the same on every rank of the group, but differs in:" +
                      differences.str());
  }
}

}  // namespace bucket_moo
