// A TCP socket over IPv4, as little of it as the transport needs. Errors are thrown as std::system_error.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

using Clock = std::chrono::steady_clock;

/// Throws what errno says.
[[noreturn]] inline void throw_errno(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

/// Milliseconds for poll(); at least 1 before the deadline.
inline int milliseconds_until(Clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return left < 0 ? 0 : static_cast<int>(left) + 1;
}

class Socket {
 public:
  Socket() = default;
  explicit Socket(int descriptor) : descriptor_(descriptor) {}
  Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~Socket() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  int descriptor() const { return descriptor_; }

  /// Listens at this address; port 0: any.
  static Socket listening(sockaddr_in address, int backlog) {
    Socket listener = fresh();
    const int on = 1;
    ::setsockopt(listener.descriptor_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (::bind(listener.descriptor_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
        ::listen(listener.descriptor_, backlog) != 0) {
      throw_errno("cannot listen");
    }
    return listener;
  }

  /// Tries until somebody listens there or the deadline has passed.
  static Socket connected(sockaddr_in address, Clock::time_point deadline, const std::string& whom) {
    for (;;) {
      Socket socket = fresh();
      if (::connect(socket.descriptor_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return socket;
      if (Clock::now() > deadline) throw_errno("cannot connect to " + whom);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }

  Socket accept(Clock::time_point deadline) const {
    pollfd waiting{descriptor_, POLLIN, 0};
    if (::poll(&waiting, 1, milliseconds_until(deadline)) <= 0) {
      throw std::runtime_error("not all ranks have come in time");
    }
    const int accepted = ::accept(descriptor_, nullptr, nullptr);
    if (accepted < 0) throw_errno("cannot accept");
    return Socket(accepted);
  }

  sockaddr_in own_address() const { return ask(::getsockname); }
  sockaddr_in peer_address() const { return ask(::getpeername); }

  /// All of a small value, before the socket is used for anything else.
  template <class Value>
  void send_value(const Value& value) const {
    if (::send(descriptor_, &value, sizeof value, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof value)) {
      throw_errno("cannot send");
    }
  }
  template <class Value>
  Value receive_value(Clock::time_point deadline) const {
    Value value;
    pollfd waiting{descriptor_, POLLIN, 0};
    if (::poll(&waiting, 1, milliseconds_until(deadline)) <= 0) throw std::runtime_error("a rank says nothing");
    if (::recv(descriptor_, &value, sizeof value, MSG_WAITALL) != static_cast<ssize_t>(sizeof value)) {
      throw std::runtime_error("a rank has gone away before the group was complete");
    }
    return value;
  }

  /// From now on calls return instead of waiting, and small messages are sent at once.
  void make_nonblocking() const {
    const int on = 1;
    ::setsockopt(descriptor_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (::fcntl(descriptor_, F_SETFL, O_NONBLOCK) != 0) throw_errno("cannot make a socket non-blocking");
  }

 private:
  static Socket fresh() {
    const int descriptor = ::socket(AF_INET, SOCK_STREAM, 0);
    if (descriptor < 0) throw_errno("no socket");
    return Socket(descriptor);
  }

  template <class Ask>
  sockaddr_in ask(Ask function) const {
    sockaddr_in address{};
    socklen_t size = sizeof address;
    if (function(descriptor_, reinterpret_cast<sockaddr*>(&address), &size) != 0) throw_errno("no address");
    return address;
  }

  int descriptor_ = -1;
};

/// Of "host:port".
inline sockaddr_in address_of(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  addrinfo wanted{}, *found = nullptr;
  wanted.ai_family = AF_INET;
  wanted.ai_socktype = SOCK_STREAM;
  if (colon == std::string::npos ||
      ::getaddrinfo(text.substr(0, colon).c_str(), text.substr(colon + 1).c_str(), &wanted, &found) != 0) {
    throw std::invalid_argument("the address must be HOST:PORT, with a host that has an IPv4 address; got " + text);
  }
  const sockaddr_in address = *reinterpret_cast<const sockaddr_in*>(found->ai_addr);
  ::freeaddrinfo(found);
  return address;
}
