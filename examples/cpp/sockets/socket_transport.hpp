// The collective's network over TCP.
#pragma once

#include <array>
#include <atomic>
#include <collective/transport.hpp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "socket.hpp"

/// Exchanges between processes that are connected with one another: two connections a pair, one for each sequence, on
/// which messages come in the order in which they are sent. Bytes move while an exchange is started or waited for, on
/// all connections at once, so that no rank waits for another that waits for it. Nothing is authenticated or encrypted.
class SocketTransport final : public bucket_moo::Transport {
 public:
  /// Collective. Rank 0 listens at `address`, the others anywhere and say so to rank 0.
  /// \param timeout  of this call and of every wait(), after which it throws
  SocketTransport(int rank, int size, const std::string& address, std::chrono::seconds timeout)
      : rank_(rank), size_(size), timeout_(timeout), peers_(2 * static_cast<std::size_t>(size)) {
    if (size < 1 || rank < 0 || rank >= size) {
      throw std::invalid_argument("rank must be in [0, " + std::to_string(size) + "); got " + std::to_string(rank));
    }
    const Clock::time_point deadline = Clock::now() + timeout;
    sockaddr_in where = address_of(address);
    const sockaddr_in first = where;
    if (rank != 0) {
      where.sin_addr.s_addr = INADDR_ANY;
      where.sin_port = 0;
    }
    const Socket listener = Socket::listening(where, 2 * size);
    const std::vector<sockaddr_in> all = rank == 0 ? meet(listener, deadline) : meet(listener, first, deadline);
    for (int peer = 0; peer < rank; ++peer) {
      for (const int sequence : {0, 1}) {
        if (peer == 0 && sequence == 0) continue;  // that on which they met
        Socket socket = Socket::connected(all[static_cast<std::size_t>(peer)], deadline, name(peer));
        socket.send_value(hello(sequence, 0));
        at(sequence, peer).socket = std::move(socket);
      }
    }
    const int expected = rank == 0 ? size - 1 : 2 * (size - 1 - rank);
    for (int i = 0; i < expected; ++i) {
      Socket socket = listener.accept(deadline);
      const Hello said = checked(socket.receive_value<Hello>(deadline));
      at(said.sequence, said.rank).socket = std::move(socket);
    }
    for (const Peer& peer : peers_) {
      if (peer.socket.descriptor() >= 0) peer.socket.make_nonblocking();
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Exchange> start_all_to_all(Sequence sequence, const std::byte* input, std::size_t pitch,
                                             std::size_t bytes, std::span<std::byte* const> rows) override {
    return start(sequence, bytes, [&](std::size_t peer) { return Buffers{input + peer * pitch, rows[peer]}; });
  }

  std::unique_ptr<Exchange> start_all_gather(Sequence sequence, std::byte* blocks, std::size_t pitch,
                                             std::size_t bytes) override {
    return start(sequence, bytes, [&](std::size_t peer) {
      return Buffers{blocks + static_cast<std::size_t>(rank_) * pitch, blocks + peer * pitch};
    });
  }

  void abort() noexcept override {
    aborted_ = true;
    for (const Peer& peer : peers_) {  // which wakes poll(), here and there
      if (peer.socket.descriptor() >= 0) ::shutdown(peer.socket.descriptor(), SHUT_RDWR);
    }
  }

 private:
  /// What is left of a message, of an exchange that counts those that are not over.
  struct Message {
    std::byte* data;
    std::size_t bytes;
    int* open;
  };
  struct Peer {
    Socket socket;
    std::deque<Message> out, in;
  };
  struct Buffers {
    const std::byte* out;
    std::byte* in;
  };

  class Messages final : public Exchange {
   public:
    explicit Messages(SocketTransport& transport) : transport_(transport) {}
    Messages(const Messages&) = delete;
    Messages& operator=(const Messages&) = delete;
    /// Given up: what is half sent cannot be taken back, and there is no use of the connections any more.
    ~Messages() override {
      if (open == 0) return;
      transport_.abort();
      for (Peer& peer : transport_.peers_) {
        peer.out.clear();
        peer.in.clear();
      }
    }
    void wait() override { transport_.move_until(open); }

    int open = 0;

   private:
    SocketTransport& transport_;
  };

  template <class Of>
  std::unique_ptr<Exchange> start(Sequence sequence, std::size_t bytes, const Of& buffers_of) {
    check_aborted();
    auto messages = std::make_unique<Messages>(*this);
    for (int distance = 1; distance < size_ && bytes > 0; ++distance) {
      const int other = (rank_ + distance) % size_;
      Peer& peer = at(sequence == Sequence::main ? 0 : 1, other);
      const Buffers buffers = buffers_of(static_cast<std::size_t>(other));
      peer.out.push_back({const_cast<std::byte*>(buffers.out), bytes, &messages->open});
      peer.in.push_back({buffers.in, bytes, &messages->open});
      messages->open += 2;
    }
    move(0);
    return messages;
  }

  void move_until(const int& open) {
    const Clock::time_point deadline = Clock::now() + timeout_;
    while (open > 0) {
      check_aborted();
      if (move(milliseconds_until(deadline)) == 0 && Clock::now() >= deadline) throw std::runtime_error(late());
    }
  }

  /// Moves what can be moved, after a wait of at most so many milliseconds; how many connections had something.
  int move(int milliseconds) {
    std::vector<pollfd> ready;
    std::vector<std::size_t> which;
    for (std::size_t i = 0; i < peers_.size(); ++i) {
      const short events =
          static_cast<short>((peers_[i].in.empty() ? 0 : POLLIN) | (peers_[i].out.empty() ? 0 : POLLOUT));
      if (events == 0) continue;
      ready.push_back({peers_[i].socket.descriptor(), events, 0});
      which.push_back(i);
    }
    const int found = ::poll(ready.data(), ready.size(), milliseconds);
    for (std::size_t r = 0; r < ready.size(); ++r) {
      if (ready[r].revents == 0) continue;
      Peer& peer = peers_[which[r]];
      const std::string who = name(static_cast<int>(which[r]) % size_);
      move(peer.in, who, [&](const Message& m) { return ::recv(peer.socket.descriptor(), m.data, m.bytes, 0); });
      move(peer.out, who,
           [&](const Message& m) { return ::send(peer.socket.descriptor(), m.data, m.bytes, MSG_NOSIGNAL); });
    }
    return found;
  }

  template <class Call>
  void move(std::deque<Message>& messages, const std::string& who, const Call& call) {
    while (!messages.empty()) {
      Message& message = messages.front();
      const ssize_t moved = call(message);
      if (moved < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
      check_aborted();
      if (moved < 0) throw_errno(who);
      if (moved == 0) throw std::runtime_error(who + " has closed the connection");
      message.data += moved;
      message.bytes -= static_cast<std::size_t>(moved);
      if (message.bytes > 0) return;
      --*message.open;
      messages.pop_front();
    }
  }

  void check_aborted() const {
    if (aborted_) throw std::runtime_error("the transport was aborted");
  }

  std::string late() const {
    std::string whom;
    for (std::size_t i = 0; i < peers_.size(); ++i) {
      if (peers_[i].in.empty() && peers_[i].out.empty()) continue;
      whom += (whom.empty() ? "" : ", ") + name(static_cast<int>(i) % size_);
    }
    return "nothing came from or went to " + whom + " for " + std::to_string(timeout_.count()) + " s";
  }

  /// The first thing that a connection carries.
  struct Hello {
    std::uint64_t mark = 0x31544b434f534d42;  // of this program
    std::int32_t size = 0, rank = 0, sequence = 0;
    std::uint32_t port = 0;  // where that rank listens, in network order
  };
  Hello hello(int sequence, std::uint32_t port) const {
    Hello said;
    said.size = size_;
    said.rank = rank_;
    said.sequence = sequence;
    said.port = port;
    return said;
  }
  Hello checked(const Hello& said) const {
    if (said.mark != Hello{}.mark) throw std::runtime_error("somebody else has connected");
    if (said.size != size_) {
      throw std::runtime_error(name(said.rank) + " is of a group of " + std::to_string(said.size) + ", not of " +
                               std::to_string(size_));
    }
    const bool is_known = said.rank > rank_ && said.rank < size_ && (said.sequence == 0 || said.sequence == 1);
    if (!is_known || peers_[place(said.sequence, said.rank)].socket.descriptor() >= 0) {
      throw std::runtime_error(name(said.rank) + " has come twice, or is none of the group");
    }
    return said;
  }

  /// On rank 0: where all listen, which everybody is told.
  std::vector<sockaddr_in> meet(const Socket& listener, Clock::time_point deadline) {
    const sockaddr_in own = listener.own_address();
    std::array<char, INET_ADDRSTRLEN> text{};
    ::inet_ntop(AF_INET, &own.sin_addr, text.data(), text.size());
    std::fprintf(stderr, "listening at %s:%d\n", text.data(), ntohs(own.sin_port));
    std::vector<sockaddr_in> all(static_cast<std::size_t>(size_), own);
    for (int i = 1; i < size_; ++i) {
      Socket socket = listener.accept(deadline);
      const Hello said = checked(socket.receive_value<Hello>(deadline));
      sockaddr_in& its = all[static_cast<std::size_t>(said.rank)];
      its = socket.peer_address();
      its.sin_port = static_cast<in_port_t>(said.port);
      at(0, said.rank).socket = std::move(socket);
    }
    for (int peer = 1; peer < size_; ++peer) {
      for (const sockaddr_in& one : all) at(0, peer).socket.send_value(one);
    }
    return all;
  }

  /// On the other ranks.
  std::vector<sockaddr_in> meet(const Socket& listener, sockaddr_in first, Clock::time_point deadline) {
    Socket socket = Socket::connected(first, deadline, name(0));
    socket.send_value(hello(0, listener.own_address().sin_port));
    std::vector<sockaddr_in> all(static_cast<std::size_t>(size_));
    for (sockaddr_in& one : all) one = socket.receive_value<sockaddr_in>(deadline);
    all[0] = first;
    at(0, 0).socket = std::move(socket);
    return all;
  }

  std::size_t place(int sequence, int peer) const { return static_cast<std::size_t>(sequence * size_ + peer); }
  Peer& at(int sequence, int peer) { return peers_[place(sequence, peer)]; }
  static std::string name(int peer) { return "rank " + std::to_string(peer); }

  const int rank_, size_;
  const std::chrono::seconds timeout_;
  std::vector<Peer> peers_;  // [2, size]
  std::atomic<bool> aborted_ = false;
};
