// What a backend puts aside for a bucket while its step goes on.
#pragma once

#include <c10/util/StringUtil.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "collective/agreed_error.hpp"
#include "engine/reduction.hpp"

namespace bucket_moo {

/// The gradients of a bucket, by objective, of the passes of a step so far.
template <class Tile>
struct PutAside {
  explicit PutAside(Tile made) : tile(std::move(made)) {}

  std::int64_t step = 0;
  bool is_open = false;
  Operation operation = Operation::invalid;
  std::int64_t numel = 0;  ///< of the whole bucket, of which the tile may have a part
  Tile tile;
  std::size_t bytes = 0;  ///< of the tile, as far as its owner has noted it
};

/// What the Futures of buckets get that waited for the weights of a step which did not come to its end.
inline std::exception_ptr broken_off() {
  return std::make_exception_ptr(
      std::runtime_error("bucket_moo_ext: the backward pass broke off before its last bucket, whose gradients the "
                         "weights of its group (scope) need"));
}

/// What was put aside for a bucket in this step; nothing yet where this is the first time. Raises AgreedError if other
/// buckets hold something for some of its parameters, or this one something of another kind.
/// \param make   () -> Tile
/// \param begin  (Tile&): empties it for this bucket
/// \param fits   (const Tile&) -> bool: whether it was begun for a bucket like this one
template <class Book, class Make, class Begin, class Fits>
auto open_aside(Book& book, const PlacedReduction& call, Make make, Begin begin, Fits fits) {
  book.for_each_overlapping(call.bucket, [&](const typename Book::Page& page) {
    if (page.aside && page.aside->is_open && page.aside->step == call.step) {
      throw AgreedError(c10::str(
          "bucket_moo_ext: in pass ", call.pass + 1, " of step ", call.step, " the bucket of parameter '",
          call.bucket[0].name, "' holds other parameters than in the passes before, whose gradients were put aside ",
          "(DDP with static_graph rebuilds its buckets after its second backward pass: run two outside of "
          "accumulate() first)"));
    }
  });
  auto& aside = book.open(call.bucket).aside;
  if (!aside) {
    aside = std::make_shared<typename std::decay_t<decltype(aside)>::element_type>(make());
  }
  if (!aside->is_open || aside->step != call.step) {
    aside->step = call.step;
    aside->is_open = true;
    aside->operation = call.operation;
    aside->numel = call.gradient().numel();
    begin(aside->tile);
  } else if (!fits(aside->tile) || aside->operation != call.operation || aside->numel != call.gradient().numel()) {
    throw AgreedError(c10::str("bucket_moo_ext: in pass ", call.pass + 1, " of step ", call.step, " bucket '",
                               call.bucket[0].name,
                               "' is of another size, dtype or operation than in the passes before"));
  }
  return aside;
}

}  // namespace bucket_moo
