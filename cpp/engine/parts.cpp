#include "engine/parts.hpp"

#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <utility>
#include <vector>

#include "kernels/rows.hpp"

namespace bucket_moo {

Sections sections_of(const PlacedReduction& call, const std::byte* shard_out, std::int64_t shard_size,
                     const std::byte* tail_out, std::int64_t tail_size, const Grouping& grouping, int piece) {
  const auto* const output = static_cast<const std::byte*>(call.output.const_data_ptr());
  const auto element = static_cast<std::int64_t>(element_size(call.dtype()));
  std::vector<Section> all;
  std::int64_t end = 0;
  for (const BucketParameter& parameter : call.bucket) {
    const std::size_t place = all.size();
    const auto [begin, size] = place < call.places.ranges.size() ? call.places.ranges[place]
                               : call.bucket.size() == 1
                                   ? std::pair(std::int64_t{0}, call.output.numel())  // a direct call's
                                   : std::pair(end, parameter.numel);
    all.push_back({begin, size, static_cast<int>(place)});
    end = begin + size;
  }
  TORCH_INTERNAL_ASSERT(
      call.places.ranges.empty() ? end == call.output.numel() : call.places.ranges.size() == call.bucket.size(),
      "the places of the parameters of bucket '", call.bucket[0].name, "'");
  const bool is_apart = call.operation == Operation::reduce_scatter;
  const std::int64_t shard = call.places.begin + (is_apart ? 0 : (shard_out - output) / element);
  const std::int64_t tail = call.places.begin + (is_apart ? 0 : (tail_out - output) / element);
  std::vector<int> counted_elsewhere;
  for (std::size_t p = 0; piece > 0 && p < call.bucket.size(); ++p) {
    if (grouping.is_replicated(call.bucket[p])) {
      counted_elsewhere.push_back(static_cast<int>(p));
    }
  }
  return {clip(all, shard, shard_size), clip(all, tail, tail_size), static_cast<int>(all.size()),
          std::move(counted_elsewhere)};
}

std::uint64_t hash_of_call(const PlacedReduction& call, const std::string& said) {
  BucketId hashed = call.bucket;
  const at::Tensor& gradient = call.gradient();
  const std::string kind = !gradient.defined() ? "" : gradient.is_sparse() ? "sparse" : dtype_name(call.dtype());
  hashed.push_back({.name = c10::str(static_cast<int>(call.operation), " ", call.step, " ", call.pass, " ", call.index,
                                     " ", call.leaves_open, " ", kind, " ", said)});
  return hash_of(hashed);
}

bool scales_to_mean(const EngineOptions& options) {
  const Grouping& grouping = options.grouping;
  return grouping.by_support() && grouping.keeps_mean_scale() && options.method.method().id != MethodId::mean;
}

}  // namespace bucket_moo
