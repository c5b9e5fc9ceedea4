// The collective's network over MPI.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <collective/transport.hpp>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

/// Exchanges between the ranks of a communicator, as messages of which several may be under way. Errors of MPI are
/// dealt with as the communicator has it: by default they end the job.
class MpiTransport final : public bucket_moo::Transport {
 public:
  /// Collective. Must not outlive MPI_Finalize().
  explicit MpiTransport(MPI_Comm group) {
    // One for each sequence: messages of one communicator are matched in the order in which they are sent.
    MPI_Comm_dup(group, &main_);
    MPI_Comm_dup(group, &ahead_);
    MPI_Comm_rank(main_, &rank_);
    MPI_Comm_size(main_, &size_);
  }
  ~MpiTransport() override {
    MPI_Comm_free(&ahead_);
    MPI_Comm_free(&main_);
  }
  MpiTransport(const MpiTransport&) = delete;
  MpiTransport& operator=(const MpiTransport&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Exchange> start_all_to_all(Sequence sequence, const std::byte* input, std::size_t pitch,
                                             std::size_t bytes, std::span<std::byte* const> rows) override {
    auto messages = std::make_unique<Messages>(of(sequence));
    for (const int peer : peers()) {
      messages->receive(rows[static_cast<std::size_t>(peer)], bytes, peer);
    }
    for (const int peer : peers()) {
      messages->send(input + static_cast<std::size_t>(peer) * pitch, bytes, peer);
    }
    return messages;
  }

  std::unique_ptr<Exchange> start_all_gather(Sequence sequence, std::byte* blocks, std::size_t pitch,
                                             std::size_t bytes) override {
    auto messages = std::make_unique<Messages>(of(sequence));
    for (const int peer : peers()) {
      messages->receive(blocks + static_cast<std::size_t>(peer) * pitch, bytes, peer);
    }
    for (const int peer : peers()) {
      messages->send(blocks + static_cast<std::size_t>(rank_) * pitch, bytes, peer);
    }
    return messages;
  }

  /// Ends the job: MPI has no other way to make peers stop waiting.
  void abort() noexcept override { MPI_Abort(main_, 1); }

 private:
  /// Messages under way, of an exchange.
  class Messages final : public Exchange {
   public:
    explicit Messages(MPI_Comm group) : group_(group) {}
    Messages(const Messages&) = delete;
    Messages& operator=(const Messages&) = delete;
    /// Given up: something has failed here, and what was sent cannot be taken back.
    ~Messages() override {
      if (!requests_.empty()) {
        MPI_Abort(group_, 1);
      }
    }

    void receive(std::byte* to, std::size_t bytes, int peer) {
      for (std::size_t begin = 0; begin < bytes; begin += kPiece) {
        const int count = static_cast<int>(std::min(kPiece, bytes - begin));
        MPI_Irecv(to + begin, count, MPI_BYTE, peer, 0, group_, &requests_.emplace_back());
      }
    }
    void send(const std::byte* from, std::size_t bytes, int peer) {
      for (std::size_t begin = 0; begin < bytes; begin += kPiece) {
        const int count = static_cast<int>(std::min(kPiece, bytes - begin));
        MPI_Isend(from + begin, count, MPI_BYTE, peer, 0, group_, &requests_.emplace_back());
      }
    }
    void wait() override {
      MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE);
      requests_.clear();
    }

   private:
    static constexpr std::size_t kPiece = std::size_t{1} << 30;  // MPI counts bytes with an int
    const MPI_Comm group_;
    std::vector<MPI_Request> requests_;
  };

  MPI_Comm of(Sequence sequence) const { return sequence == Sequence::main ? main_ : ahead_; }

  /// The other ranks, the next one first, so that not all of them send to rank 0 at once.
  std::vector<int> peers() const {
    std::vector<int> others;
    for (int distance = 1; distance < size_; ++distance) {
      others.push_back((rank_ + distance) % size_);
    }
    return others;
  }

  MPI_Comm main_ = MPI_COMM_NULL;
  MPI_Comm ahead_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
};
