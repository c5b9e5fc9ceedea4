#include "collective/point_to_point_transport.hpp"

#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>

#include <exception>
#include <string>
#include <utility>

namespace bucket_moo {
namespace {

std::vector<at::Tensor> as_bytes(std::byte* data, std::size_t bytes) {
  return {at::from_blob(data, {static_cast<std::int64_t>(bytes)}, at::TensorOptions().dtype(at::kByte))};
}

}  // namespace

PointToPointTransport::PointToPointTransport(c10::intrusive_ptr<c10d::ProcessGroup> group)
    : group_(std::move(group)), rank_(group_->getRank()), size_(group_->getSize()) {}

void PointToPointTransport::all_to_all(const std::byte* input, std::size_t pitch, std::size_t bytes,
                                       std::span<std::byte* const> rows) {
  if (bytes == 0 || size_ == 1) {
    return;
  }
  const int tag = next_tag();
  // Receives first, so that no message has to wait for its place; peers in rotated order, so that no rank is
  // everybody's first target.
  for (int i = 1; i < size_; ++i) {
    const int peer = (rank_ + size_ - i) % size_;
    post_receive(peer, rows[static_cast<std::size_t>(peer)], bytes, tag);
  }
  for (int i = 1; i < size_; ++i) {
    const int peer = (rank_ + i) % size_;
    post_send(peer, input + static_cast<std::size_t>(peer) * pitch, bytes, tag);
  }
  wait_all("all-to-all");
}

void PointToPointTransport::all_gather(std::byte* blocks, std::size_t bytes) {
  if (bytes == 0 || size_ == 1) {
    return;
  }
  const int tag = next_tag();
  for (int i = 1; i < size_; ++i) {
    const int peer = (rank_ + size_ - i) % size_;
    post_receive(peer, blocks + static_cast<std::size_t>(peer) * bytes, bytes, tag);
  }
  for (int i = 1; i < size_; ++i) {
    post_send((rank_ + i) % size_, blocks + static_cast<std::size_t>(rank_) * bytes, bytes, tag);
  }
  wait_all("all-gather");
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

void PointToPointTransport::post_receive(int peer, std::byte* data, std::size_t bytes, int tag) {
  auto tensors = as_bytes(data, bytes);
  post({group_->recv(tensors, peer, tag), peer, false});
}

void PointToPointTransport::post_send(int peer, const std::byte* data, std::size_t bytes, int tag) {
  auto tensors = as_bytes(const_cast<std::byte*>(data), bytes);  // c10d has no tensor of const bytes; send only reads
  post({group_->send(tensors, peer, tag), peer, true});
}

void PointToPointTransport::post(Pending pending) {
  const std::lock_guard lock(mutex_);
  pending_.push_back(std::move(pending));
}

void PointToPointTransport::wait_all(const char* operation) {
  std::string failure;
  for (std::size_t i = 0; i < pending_.size() && failure.empty(); ++i) {
    const Pending& pending = pending_[i];
    {
      const std::lock_guard lock(mutex_);
      if (aborted_) {
        failure = "the state was shut down";
        break;
      }
    }
    try {
      if (!pending.work->wait()) {
        failure = "the state was shut down";
      }
    } catch (const std::exception& error) {
      failure = (pending.is_send ? "sending to rank " : "receiving from rank ") + std::to_string(pending.peer) +
                " failed: " + error.what();
    }
  }
  {
    // Dropping the works also withdraws what is still posted, so no peer can write into our buffers after this.
    const std::lock_guard lock(mutex_);
    pending_.clear();
  }
  if (!failure.empty()) {
    C10_THROW_ERROR(DistBackendError,
                    c10::str("bucket_moo_ext: ", operation, " on rank ", rank_, " of ", size_, ": ", failure));
  }
}

int PointToPointTransport::next_tag() {
  sequence_ = (sequence_ + 1) & 0x7fffffffU;  // c10d tags are non-negative ints
  return static_cast<int>(sequence_);
}

}  // namespace bucket_moo
