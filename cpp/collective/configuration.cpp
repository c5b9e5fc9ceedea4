#include "collective/configuration.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <sstream>
#include <stdexcept>

#include "collective/agreed_error.hpp"
#include "methods/message.hpp"

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

std::int64_t length_of(std::int64_t marked, int from) {
  const std::int64_t length = marked - kLengthMark;
  if (length < 0 || length > kLongest) {
    throw std::invalid_argument(message("bucket_moo_ext: what rank ", from,
                                        " sent is no configuration of this version of bucket_moo_ext; ranks of one "
                                        "group must run the same build"));
  }
  return length;
}

/// Every rank's text.
std::vector<std::string> gather(int rank, int world, const HostAllGather& all_gather, const std::string& own) {
  const auto ranks = static_cast<std::size_t>(world);
  const auto place = static_cast<std::size_t>(rank);
  if (own.size() > static_cast<std::size_t>(kLongest)) {
    throw std::invalid_argument(
        message("bucket_moo_ext: the configuration must be printed in ", kLongest, " bytes at most; got ", own.size()));
  }
  std::vector<std::int64_t> lengths(ranks);
  lengths[place] = kLengthMark + static_cast<std::int64_t>(own.size());
  all_gather(std::as_writable_bytes(std::span(lengths)));
  std::size_t longest = 0;
  for (std::size_t r = 0; r < ranks; ++r) {
    lengths[r] = length_of(lengths[r], static_cast<int>(r));
    longest = std::max(longest, static_cast<std::size_t>(lengths[r]));
  }
  std::vector<char> blocks(ranks * longest);
  std::copy(own.begin(), own.end(), blocks.begin() + static_cast<std::ptrdiff_t>(place * longest));
  all_gather(std::as_writable_bytes(std::span(blocks)));
  std::vector<std::string> texts;
  for (std::size_t r = 0; r < ranks; ++r) {
    texts.emplace_back(blocks.data() + r * longest, static_cast<std::size_t>(lengths[r]));
  }
  return texts;
}

}  // namespace

Configuration of_whole_model(Configuration configuration) {
  std::erase_if(configuration, [](const auto& field) { return field.first == kPlaceOfPiece; });
  return configuration;
}

void check_same_configuration(int rank, int world, const HostAllGather& all_gather,
                              const Configuration& configuration) {
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
