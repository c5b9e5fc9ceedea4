// How ranks find each other: all know where rank 0 listens, and it tells them where the others do. IPv4.
#pragma once

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace tcp {

using Time = std::chrono::steady_clock::time_point;

/// Owns a file descriptor.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket() {
    if (fd_ >= 0) ::close(fd_);
  }
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

/// With one peer: a connection for each sequence.
using Connections = std::array<Socket, 2>;

/// What a rank says first on a connection. All machines have one byte order.
struct Hello {
  std::uint32_t magic = 0x6d6f6f31;
  std::int32_t size = 0;
  std::int32_t rank = 0;
  std::int32_t sequence = 0;
  std::int32_t port = 0;  // where this rank listens, in network order
};

/// How many are ready; 0: the time has passed.
inline int poll_until(std::span<pollfd> polled, Time deadline) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    const int ready = ::poll(polled.data(), polled.size(), static_cast<int>(std::max<std::int64_t>(left.count(), 0)));
    if (ready >= 0) return ready;
    if (errno != EINTR) throw std::system_error(errno, std::generic_category(), "poll");
  }
}

/// Whether it can be read before the time has passed.
inline bool readable(const Socket& socket, Time deadline) {
  pollfd polled{socket.fd(), POLLIN, 0};
  return poll_until({&polled, 1}, deadline) > 0;
}

/// Whether all of it came.
inline bool receive(const Socket& from, void* to, std::size_t bytes, Time deadline) {
  auto* place = static_cast<std::byte*>(to);
  while (bytes > 0 && readable(from, deadline)) {
    const ssize_t got = ::recv(from.fd(), place, bytes, 0);
    if (got <= 0) return false;
    place += got;
    bytes -= static_cast<std::size_t>(got);
  }
  return bytes == 0;
}

inline void check(bool worked, const std::string& what) {
  if (!worked) throw std::system_error(errno, std::generic_category(), what);
}

/// A few bytes on a new connection: they fit into its buffer.
inline void send(const Socket& to, const void* data, std::size_t bytes) {
  check(::send(to.fd(), data, bytes, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes), "send");
}

inline sockaddr_in resolve(const std::string& address) {
  const std::size_t colon = address.rfind(':');
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  if (colon == std::string::npos ||
      ::getaddrinfo(address.substr(0, colon).c_str(), address.substr(colon + 1).c_str(), &hints, &found) != 0) {
    throw std::invalid_argument("address must be host:port, with a host that has an IPv4 address; got " + address);
  }
  const sockaddr_in resolved = *reinterpret_cast<const sockaddr_in*>(found->ai_addr);
  ::freeaddrinfo(found);
  return resolved;
}

/// The address of the socket itself.
inline sockaddr_in own_address(const Socket& socket) {
  sockaddr_in address{};
  socklen_t length = sizeof address;
  check(::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&address), &length) == 0, "getsockname");
  return address;
}

inline Socket listen_at(const sockaddr_in& address, int backlog) {
  Socket listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  ::setsockopt(listener.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  check(::bind(listener.fd(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0, "bind");
  check(::listen(listener.fd(), backlog) == 0, "listen");
  return listener;
}

inline void send_at_once(const Socket& socket) {
  const int on = 1;
  ::setsockopt(socket.fd(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/// Tries again while nobody listens there yet.
inline Socket connect_to(const sockaddr_in& address, const Hello& hello, int peer, Time deadline) {
  for (;;) {
    Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(socket.fd(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
      send_at_once(socket);
      send(socket, &hello, sizeof hello);
      return socket;
    }
    check((errno == ECONNREFUSED || errno == EINTR) && std::chrono::steady_clock::now() < deadline,
          "rank " + std::to_string(hello.rank) + ": connecting to rank " + std::to_string(peer));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

/// Connects all ranks with each other: each with those below it, after rank 0 has told it where they listen.
inline std::vector<Connections> connect_all(int rank, int size, const std::string& address,
                                            std::chrono::milliseconds timeout,
                                            const std::function<void(const std::string&)>& listening) {
  if (size < 1 || rank < 0 || rank >= size) {
    throw std::invalid_argument("rank must be in 0.." + std::to_string(size - 1) + "; got " + std::to_string(rank));
  }
  const Time deadline = std::chrono::steady_clock::now() + timeout;
  const std::string me = "rank " + std::to_string(rank) + ": ";
  std::vector<Connections> peers(static_cast<std::size_t>(size));
  std::vector<sockaddr_in> table(static_cast<std::size_t>(size));
  table[0] = resolve(address);
  sockaddr_in own{};  // any interface, any port
  own.sin_family = AF_INET;
  const Socket listener = listen_at(rank == 0 ? table[0] : own, 2 * size);
  const in_port_t port = own_address(listener).sin_port;
  if (rank == 0 && listening) listening(address.substr(0, address.rfind(':')) + ":" + std::to_string(ntohs(port)));

  const auto connect = [&](int peer) {
    for (int sequence = 0; sequence < 2; ++sequence) {
      const Hello hello{.size = size, .rank = rank, .sequence = sequence, .port = port};
      const auto place = static_cast<std::size_t>(peer);
      peers[place][static_cast<std::size_t>(sequence)] = connect_to(table[place], hello, peer, deadline);
    }
  };
  const std::size_t bytes = table.size() * sizeof table[0];
  if (rank > 0) {
    connect(0);
    const sockaddr_in first = table[0];
    if (!receive(peers[0][0], table.data(), bytes, deadline)) {
      throw std::runtime_error(me + "rank 0 did not say where the other ranks are: it has ended, or some did not come");
    }
    table[0] = first;
    for (int peer = 1; peer < rank; ++peer) connect(peer);
  }
  for (int missing = 2 * (size - 1 - rank); missing > 0;) {
    if (!readable(listener, deadline)) {
      std::string late;
      for (int peer = rank + 1; peer < size; ++peer) {
        if (peers[static_cast<std::size_t>(peer)][1].fd() < 0) late += " " + std::to_string(peer);
      }
      throw std::runtime_error(me + "waited " + std::to_string(timeout.count()) + " ms for rank" + late);
    }
    sockaddr_in from{};
    socklen_t length = sizeof from;
    Socket socket(::accept4(listener.fd(), reinterpret_cast<sockaddr*>(&from), &length, SOCK_CLOEXEC));
    Hello hello;
    const Time soon = std::min(deadline, std::chrono::steady_clock::now() + std::chrono::seconds(5));
    if (socket.fd() < 0 || !receive(socket, &hello, sizeof hello, soon) || hello.magic != Hello{}.magic) {
      continue;  // not one of ours
    }
    const auto place = static_cast<std::size_t>(hello.rank), sequence = static_cast<std::size_t>(hello.sequence);
    if (hello.size != size || hello.rank <= rank || hello.rank >= size || sequence > 1 ||
        peers[place][sequence].fd() >= 0) {
      throw std::runtime_error(me + "of " + std::to_string(size) + " ranks: rank " + std::to_string(hello.rank) +
                               " of " + std::to_string(hello.size) + " came, which was not expected, or came twice");
    }
    send_at_once(socket);
    peers[place][sequence] = std::move(socket);
    from.sin_port = static_cast<in_port_t>(hello.port);
    table[place] = from;
    --missing;
  }
  if (rank == 0) {
    for (std::size_t peer = 1; peer < peers.size(); ++peer) send(peers[peer][0], table.data(), bytes);
  }
  return peers;
}

}  // namespace tcp
