#include "c10d_collective/point_to_point_transport.hpp"

#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <exception>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "c10d_collective/torch_profiler.hpp"

namespace bucket_moo {
namespace {

std::vector<at::Tensor> as_bytes(std::byte* data, std::size_t bytes) {
  return {at::from_blob(data, {static_cast<std::int64_t>(bytes)}, at::TensorOptions().dtype(at::kByte))};
}

std::vector<int> all_ranks(int size) {
  std::vector<int> ranks(static_cast<std::size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

constexpr const char* kAborted = "the state was shut down";

std::string describe(int peer, bool is_send) {
  return (is_send ? "sending to rank " : "receiving from rank ") + std::to_string(peer) + " failed: ";
}

}  // namespace

/// The messages of one exchange.
class PointToPointTransport::Messages final : public Exchange {
 public:
  Messages(PointToPointTransport& transport, const char* operation, int tag)
      : transport_(transport), operation_(operation), tag_(tag) {
    const std::lock_guard lock(transport_.mutex_);
    transport_.in_flight_.insert(this);
  }

  /// Dropping the works withdraws what is still posted, so that no peer can write into our callers' memory afterwards.
  ~Messages() override {
    const std::lock_guard lock(transport_.mutex_);
    transport_.in_flight_.erase(this);
    pending_.clear();
  }

  void receive(int peer, std::byte* data, std::size_t bytes) {
    auto tensors = as_bytes(data, bytes);
    const int rank = transport_.members_[static_cast<std::size_t>(peer)];
    start(rank, false, [&] { return transport_.group_->recv(tensors, rank, tag_); });
  }

  void send(int peer, const std::byte* data, std::size_t bytes) {
    auto tensors = as_bytes(const_cast<std::byte*>(data), bytes);  // c10d has no tensor of const bytes; send only reads
    const int rank = transport_.members_[static_cast<std::size_t>(peer)];
    start(rank, true, [&] { return transport_.group_->send(tensors, rank, tag_); });
    transport_.bytes_sent_ += static_cast<std::int64_t>(bytes);
  }

  void wait() override {
    for (const Pending& pending : pending_) {
      bool completed = false;
      try {
        completed = pending.work->wait();
      } catch (const std::exception& error) {
        fail(describe(pending.peer, pending.is_send) + error.what());
      }
      if (!completed) {
        fail(kAborted);
      }
    }
    const std::lock_guard lock(transport_.mutex_);
    pending_.clear();
  }

  void abort() noexcept {
    for (const Pending& pending : pending_) {
      try {
        pending.work->abort();
      } catch (const std::exception&) {  // nothing is left to tell: the exchange is being given up
      }
    }
  }

 private:
  struct Pending {
    c10::intrusive_ptr<c10d::Work> work;
    int peer;  // in the group
    bool is_send;
  };

  void start(int peer, bool is_send, const std::function<c10::intrusive_ptr<c10d::Work>()>& post) {
    const std::lock_guard lock(transport_.mutex_);
    if (transport_.aborted_) {
      fail(kAborted);
    }
    try {
      pending_.push_back({post(), peer, is_send});
    } catch (const std::exception& error) {  // the connection was closed before this message
      fail(describe(peer, is_send) + error.what());
    }
  }

  [[noreturn]] void fail(const std::string& failure) const {
    C10_THROW_ERROR(DistBackendError,
                    c10::str("bucket_moo_ext: ", operation_, " on rank ", transport_.group_->getRank(), " of ",
                             transport_.group_->getSize(), ": ", failure));
  }

  PointToPointTransport& transport_;
  const char* const operation_;
  const int tag_;
  std::vector<Pending> pending_;
};

PointToPointTransport::PointToPointTransport(c10::intrusive_ptr<c10d::ProcessGroup> group)
    : PointToPointTransport(group, Channel::all, all_ranks(group->getSize())) {}

PointToPointTransport::PointToPointTransport(c10::intrusive_ptr<c10d::ProcessGroup> group, Channel channel,
                                             std::vector<int> members)
    : group_(std::move(group)),
      channel_(channel),
      members_(std::move(members)),
      rank_(static_cast<int>(std::find(members_.begin(), members_.end(), group_->getRank()) - members_.begin())) {
  TORCH_INTERNAL_ASSERT(rank_ < size());
  show_stages_to_torch();
}

std::unique_ptr<Transport::Exchange> PointToPointTransport::start_all_to_all(Sequence sequence, const std::byte* input,
                                                                             std::size_t pitch, std::size_t bytes,
                                                                             std::span<std::byte* const> rows) {
  if (bytes == 0 || size() == 1) {
    return std::make_unique<Done>();
  }
  return start(sequence, "all-to-all", [&](Messages& messages) {
    // Receives first, so that no message has to wait for its place; peers in rotated order, so that no rank is
    // everybody's first target.
    for (int i = 1; i < size(); ++i) {
      const int peer = (rank_ + size() - i) % size();
      messages.receive(peer, rows[static_cast<std::size_t>(peer)], bytes);
    }
    for (int i = 1; i < size(); ++i) {
      const int peer = (rank_ + i) % size();
      messages.send(peer, input + static_cast<std::size_t>(peer) * pitch, bytes);
    }
  });
}

std::unique_ptr<Transport::Exchange> PointToPointTransport::start_all_gather(Sequence sequence, std::byte* blocks,
                                                                             std::size_t pitch, std::size_t bytes) {
  if (bytes == 0 || size() == 1) {
    return std::make_unique<Done>();
  }
  return start(sequence, "all-gather", [&](Messages& messages) {
    for (int i = 1; i < size(); ++i) {
      const int peer = (rank_ + size() - i) % size();
      messages.receive(peer, blocks + static_cast<std::size_t>(peer) * pitch, bytes);
    }
    for (int i = 1; i < size(); ++i) {
      messages.send((rank_ + i) % size(), blocks + static_cast<std::size_t>(rank_) * pitch, bytes);
    }
  });
}

void PointToPointTransport::abort() noexcept {
  const std::lock_guard lock(mutex_);
  aborted_ = true;
  for (Messages* const messages : in_flight_) {
    messages->abort();
  }
}

std::unique_ptr<Transport::Exchange> PointToPointTransport::start(Sequence sequence, const char* operation,
                                                                  const std::function<void(Messages&)>& post) {
  auto messages = std::make_unique<Messages>(*this, operation, next_tag(sequence));
  post(*messages);
  return messages;
}

/// Tags keep the exchanges apart: their last bit is the sequence, the two before it are the channel.
int PointToPointTransport::next_tag(Sequence sequence) {
  const std::uint32_t number = ++started_[static_cast<std::size_t>(sequence)];
  const std::uint32_t kind = 2 * static_cast<std::uint32_t>(channel_) + static_cast<std::uint32_t>(sequence);
  return static_cast<int>((8 * number + kind) & 0x7fffffffU);  // c10d wants them >= 0
}

}  // namespace bucket_moo
