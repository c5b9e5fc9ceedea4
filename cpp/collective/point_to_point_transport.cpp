#include "collective/point_to_point_transport.hpp"

#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>

#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

namespace bucket_moo {
namespace {

std::vector<at::Tensor> as_bytes(std::byte* data, std::size_t bytes) {
  return {at::from_blob(data, {static_cast<std::int64_t>(bytes)}, at::TensorOptions().dtype(at::kByte))};
}

constexpr const char* kAborted = "the state was shut down";

std::string describe(int peer, bool is_send) {
  return (is_send ? "sending to rank " : "receiving from rank ") + std::to_string(peer) + " failed: ";
}

}  // namespace

PointToPointTransport::PointToPointTransport(c10::intrusive_ptr<c10d::ProcessGroup> group)
    : group_(std::move(group)), rank_(group_->getRank()), size_(group_->getSize()) {}

void PointToPointTransport::all_to_all(const std::byte* input, std::size_t pitch, std::size_t bytes,
                                       std::span<std::byte* const> rows) {
  if (bytes == 0 || size_ == 1) {
    return;
  }
  exchange("all-to-all", [&](int tag) {
    // Receives first, so that no message has to wait for its place; peers in rotated order, so that no rank is
    // everybody's first target.
    for (int i = 1; i < size_; ++i) {
      const int peer = (rank_ + size_ - i) % size_;
      receive(peer, rows[static_cast<std::size_t>(peer)], bytes, tag);
    }
    for (int i = 1; i < size_; ++i) {
      const int peer = (rank_ + i) % size_;
      send(peer, input + static_cast<std::size_t>(peer) * pitch, bytes, tag);
    }
  });
}

void PointToPointTransport::all_gather(std::byte* blocks, std::size_t bytes) {
  if (bytes == 0 || size_ == 1) {
    return;
  }
  exchange("all-gather", [&](int tag) {
    for (int i = 1; i < size_; ++i) {
      const int peer = (rank_ + size_ - i) % size_;
      receive(peer, blocks + static_cast<std::size_t>(peer) * bytes, bytes, tag);
    }
    for (int i = 1; i < size_; ++i) {
      send((rank_ + i) % size_, blocks + static_cast<std::size_t>(rank_) * bytes, bytes, tag);
    }
  });
}

void PointToPointTransport::abort() noexcept {
  const std::lock_guard lock(mutex_);
  aborted_ = true;
  for (const Pending& pending : pending_) {
    try {
      pending.work->abort();
    } catch (const std::exception&) {  // nothing is left to tell: the exchange is being given up
    }
  }
}

void PointToPointTransport::exchange(const char* operation, const std::function<void(int tag)>& post) {
  std::string failure;
  try {
    post(next_tag());
    wait_all();
  } catch (const std::exception& error) {
    failure = error.what();
  }
  {
    // However the exchange ended: dropping the works withdraws what is still posted, so that no peer can write into
    // our callers' memory once this has returned.
    const std::lock_guard lock(mutex_);
    pending_.clear();
  }
  if (!failure.empty()) {
    C10_THROW_ERROR(DistBackendError,
                    c10::str("bucket_moo_ext: ", operation, " on rank ", rank_, " of ", size_, ": ", failure));
  }
}

void PointToPointTransport::receive(int peer, std::byte* data, std::size_t bytes, int tag) {
  auto tensors = as_bytes(data, bytes);
  start(peer, false, [&] { return group_->recv(tensors, peer, tag); });
}

void PointToPointTransport::send(int peer, const std::byte* data, std::size_t bytes, int tag) {
  auto tensors = as_bytes(const_cast<std::byte*>(data), bytes);  // c10d has no tensor of const bytes; send only reads
  start(peer, true, [&] { return group_->send(tensors, peer, tag); });
}

void PointToPointTransport::start(int peer, bool is_send, const std::function<c10::intrusive_ptr<c10d::Work>()>& post) {
  const std::lock_guard lock(mutex_);
  if (aborted_) {
    throw std::runtime_error(kAborted);
  }
  try {
    pending_.push_back({post(), peer, is_send});
  } catch (const std::exception& error) {  // the connection was closed before this message
    throw std::runtime_error(describe(peer, is_send) + error.what());
  }
}

void PointToPointTransport::wait_all() {
  for (const Pending& pending : pending_) {
    bool completed = false;
    try {
      completed = pending.work->wait();
    } catch (const std::exception& error) {
      throw std::runtime_error(describe(pending.peer, pending.is_send) + error.what());
    }
    if (!completed) {
      throw std::runtime_error(kAborted);
    }
  }
}

int PointToPointTransport::next_tag() {
  sequence_ = (sequence_ + 1) & 0x7fffffffU;  // c10d tags are non-negative ints
  return static_cast<int>(sequence_);
}

}  // namespace bucket_moo
