// A C program's network as the collective sees it.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "c_api/boundary.hpp"
#include "collective/transport.hpp"

namespace bucket_moo::c_api {

/// Exchanges are over when they are started, so that those of both sequences are in one order on all ranks.
class CallbackTransport final : public Transport {
 public:
  explicit CallbackTransport(const bucket_moo_transport& functions) : functions_(functions) {}

  int rank() const override { return functions_.rank; }
  int size() const override { return functions_.size; }

  std::unique_ptr<Exchange> start_all_to_all(Sequence, const std::byte* input, std::size_t pitch, std::size_t bytes,
                                             std::span<std::byte* const> rows) override {
    if (bytes > 0 && size() > 1) {
      const std::vector<void*> places(rows.begin(), rows.end());
      check(functions_.all_to_all(functions_.context, input, pitch, bytes, places.data()), "all_to_all");
    }
    return std::make_unique<Done>();
  }

  std::unique_ptr<Exchange> start_all_gather(Sequence, std::byte* blocks, std::size_t pitch,
                                             std::size_t bytes) override {
    if (bytes > 0 && size() > 1) {
      check(functions_.all_gather(functions_.context, blocks, pitch, bytes), "all_gather");
    }
    return std::make_unique<Done>();
  }

  void abort() noexcept override {}  // no exchange is ever in flight

 private:
  void check(int result, const char* function) const {
    if (result != 0) {
      throw TransportFailed(message("bucket_moo: ", function, " of the transport returned ", result, " on rank ",
                                    rank(), " of ", size()));
    }
  }

  const bucket_moo_transport functions_;
};

}  // namespace bucket_moo::c_api
