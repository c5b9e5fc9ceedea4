// The collective's network over TCP: every rank is connected with every other, once for each sequence of exchanges.
#pragma once

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <collective/transport.hpp>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "rendezvous.hpp"

/// Exchanges between processes, for one thread at a time. A peer that closes its connection, or with which nothing has
/// moved for `timeout` while it was waited for, makes wait() throw a std::runtime_error that names it. After that, and
/// after an exchange was given up, the transport is spent: its connections are shut, so that peers do not wait for it.
class TcpTransport final : public bucket_moo::Transport {
 public:
  /// Returns when all ranks are connected. `address`, "host:port", is where rank 0 listens, the same on every rank but
  /// for a port 0 on rank 0: the system then chooses, and `listening` is told the address, before others are waited
  /// for.
  TcpTransport(int rank, int size, const std::string& address, std::chrono::milliseconds timeout,
               const std::function<void(const std::string&)>& listening = {})
      : rank_(rank), size_(size), timeout_(timeout) {
    std::vector<tcp::Connections> sockets = tcp::connect_all(rank, size, address, timeout, listening);
    for (int peer = 0; peer < size; ++peer) {
      if (peer == rank) continue;
      for (std::size_t s = 0; s < 2; ++s) {
        tcp::Socket& socket = sockets[static_cast<std::size_t>(peer)][s];
        streams_.push_back({.socket = std::move(socket), .peer = peer, .sequence = s, .out = {}, .in = {}});
      }
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Exchange> start_all_to_all(Sequence sequence, const std::byte* input, std::size_t pitch,
                                             std::size_t bytes, std::span<std::byte* const> rows) override {
    return start(sequence, bytes, [&](std::size_t peer) { return std::pair(input + peer * pitch, rows[peer]); });
  }

  std::unique_ptr<Exchange> start_all_gather(Sequence sequence, std::byte* blocks, std::size_t pitch,
                                             std::size_t bytes) override {
    const std::byte* const own = blocks + static_cast<std::size_t>(rank_) * pitch;
    return start(sequence, bytes, [&](std::size_t peer) { return std::pair(own, blocks + peer * pitch); });
  }

  /// Shuts the connections, which wakes whoever waits on them; they are closed by the destructor alone.
  void abort() noexcept override {
    spent_ = true;
    for (const Stream& stream : streams_) ::shutdown(stream.socket.fd(), SHUT_RDWR);
  }

 private:
  /// What is left of a message; `pending` counts the messages of its exchange that are under way.
  template <class Byte>
  struct Message {
    Byte* data;
    std::size_t bytes;
    int* pending;
  };
  /// A connection. Messages of a sequence come in the order in which they were sent, so nothing has to be marked.
  struct Stream {
    tcp::Socket socket;
    int peer;
    std::size_t sequence;
    std::deque<Message<const std::byte>> out;
    std::deque<Message<std::byte>> in;
  };

  class Messages final : public Exchange {
   public:
    explicit Messages(TcpTransport& network) : network_(network) {}
    Messages(const Messages&) = delete;
    Messages& operator=(const Messages&) = delete;
    /// Given up: the rest of a message cannot be told from the next one.
    ~Messages() override {
      if (pending == 0) return;
      network_.abort();
      for (Stream& stream : network_.streams_) {
        stream.out.clear();
        stream.in.clear();
      }
    }
    void wait() override {
      while (pending > 0) network_.move(pending);
    }
    int pending = 0;

   private:
    TcpTransport& network_;
  };

  template <class Ends>
  std::unique_ptr<Exchange> start(Sequence sequence, std::size_t bytes, Ends ends) {
    auto messages = std::make_unique<Messages>(*this);
    if (bytes == 0) return messages;
    for (Stream& stream : streams_) {
      if (stream.sequence != (sequence == Sequence::main ? 0U : 1U)) continue;
      const auto [from, to] = ends(static_cast<std::size_t>(stream.peer));
      stream.out.push_back({from, bytes, &messages->pending});
      stream.in.push_back({to, bytes, &messages->pending});
      messages->pending += 2;
    }
    return messages;
  }

  /// Waits until something can be sent or received, of any exchange and either way: that is why messages which are
  /// larger than the sockets' buffers do not block ranks that send to each other. `pending`: of the exchange that is
  /// waited for.
  void move(const int& pending) {
    check_not_spent();
    std::vector<pollfd> polled;
    for (const Stream& stream : streams_) {
      const int events = (stream.out.empty() ? 0 : POLLOUT) | (stream.in.empty() ? 0 : POLLIN);
      // One that has nothing to do is left out: a peer that is through may have closed it.
      polled.push_back({events == 0 ? -1 : stream.socket.fd(), static_cast<short>(events), 0});
    }
    if (tcp::poll_until(polled, std::chrono::steady_clock::now() + timeout_) == 0) throw waited_in_vain(pending);
    for (std::size_t i = 0; i < streams_.size(); ++i) {
      Stream& stream = streams_[i];
      if ((polled[i].revents & (POLLOUT | POLLERR)) != 0) {
        go_on(stream, stream.out, [&](const auto& m) { return ::send(stream.socket.fd(), m.data, m.bytes, kFlags); });
      }
      if ((polled[i].revents & (POLLIN | POLLERR | POLLHUP)) != 0) {
        go_on(stream, stream.in, [&](const auto& m) { return ::recv(stream.socket.fd(), m.data, m.bytes, kFlags); });
      }
    }
  }

  template <class Queue, class Call>
  void go_on(const Stream& stream, Queue& queue, Call call) {
    while (!queue.empty()) {
      auto& message = queue.front();
      const ssize_t moved = call(message);
      if (moved < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
      if (moved <= 0) {
        check_not_spent();
        throw std::runtime_error(me() + "rank " + std::to_string(stream.peer) + " closed the connection" +
                                 (moved < 0 ? ": " + std::generic_category().message(errno) : ""));
      }
      message.data += moved;
      message.bytes -= static_cast<std::size_t>(moved);
      if (message.bytes > 0) return;
      --*message.pending;
      queue.pop_front();
    }
  }

  void check_not_spent() const {
    if (spent_) throw std::runtime_error(me() + "the connections were shut, by abort() or after an error");
  }

  std::runtime_error waited_in_vain(const int& pending) const {
    std::string peers;
    for (const Stream& stream : streams_) {
      const auto is_waited_for = [&](const auto& message) { return message.pending == &pending; };
      if (std::ranges::any_of(stream.in, is_waited_for) || std::ranges::any_of(stream.out, is_waited_for)) {
        peers += (peers.empty() ? "" : ", ") + std::to_string(stream.peer);
      }
    }
    return std::runtime_error(me() + "waited " + std::to_string(timeout_.count()) + " ms for rank " + peers);
  }

  std::string me() const { return "rank " + std::to_string(rank_) + ": "; }

  static constexpr int kFlags = MSG_DONTWAIT | MSG_NOSIGNAL;
  const int rank_;
  const int size_;
  const std::chrono::milliseconds timeout_;
  std::atomic<bool> spent_ = false;
  std::vector<Stream> streams_;
};
