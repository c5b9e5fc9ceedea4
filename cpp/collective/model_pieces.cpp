#include "collective/model_pieces.hpp"

#include <exception>
#include <span>
#include <vector>

#include "collective/agreed_error.hpp"
#include "methods/message.hpp"

namespace bucket_moo {

void ModelPieces::agree(const std::function<std::uint64_t()>& part) {
  struct Said {
    std::uint64_t failed = 0;
    std::uint64_t number = 0;
  };
  Said own;
  std::exception_ptr failure;
  try {
    own.number = part();
  } catch (const AgreedError&) {
    failure = std::current_exception();
    own.failed = 1;
  }
  std::vector<Said> all(static_cast<std::size_t>(size_));
  all[static_cast<std::size_t>(rank_)] = own;
  all_gather_(std::as_writable_bytes(std::span(all)));
  if (failure) {
    std::rethrow_exception(failure);
  }
  for (std::size_t p = 0; p < all.size(); ++p) {
    const Said& other = all[p];
    if (other.failed != 0) {
      throw AgreedError(message("bucket_moo_ext: ranks that hold other pieces of the model (place ", p,
                                " of model_parallel_group) have raised an error, which says what is wrong there"));
    }
    if (other.number != own.number) {
      throw AgreedError(
          message("bucket_moo_ext: ranks of model_parallel_group must reduce the same buckets, of parameters "
                  "with the same names (for direct calls: bucket=\"name\"), in the same order, and have the "
                  "same objective and weight; place ",
                  p, " differs from place ", rank(), ", which is this rank's"));
    }
  }
}

}  // namespace bucket_moo
