// Three ranks, threads of one process, over TcpTransport: several exchanges under way, of messages that are larger than
// what sockets hold, begun in another order of the two sequences on every rank. Prints "all arrived".
#include <cstdint>
#include <cstdio>
#include <exception>
#include <future>
#include <thread>

#include "tcp_transport.hpp"

namespace {

constexpr int kRanks = 3;
constexpr std::size_t kBytes = (std::size_t{16} << 20) + 5;

std::byte value(int exchange, int from, int to, std::size_t place) {
  return static_cast<std::byte>(((exchange * 3 + from) * 3 + to) * 29 + static_cast<int>(place % 251));
}

using Sequence = bucket_moo::Transport::Sequence;

struct AllToAll {
  AllToAll(TcpTransport& network, int exchange, Sequence sequence)
      : exchange(exchange), rank(network.rank()), sent(kRanks * kBytes), received(kRanks * kBytes) {
    for (int to = 0; to < kRanks; ++to) {
      for (std::size_t i = 0; i < kBytes; ++i) sent[to * kBytes + i] = value(exchange, rank, to, i);
    }
    std::byte* rows[kRanks];
    for (int from = 0; from < kRanks; ++from) rows[from] = &received[from * kBytes];
    under_way = network.start_all_to_all(sequence, sent.data(), kBytes, kBytes, rows);
  }
  bool arrives() {
    under_way->wait();
    for (int from = 0; from < kRanks; ++from) {
      for (std::size_t i = 0; i < kBytes && from != rank; ++i) {
        if (received[from * kBytes + i] != value(exchange, from, rank, i)) return false;
      }
    }
    return true;
  }
  int exchange, rank;
  std::vector<std::byte> sent, received;
  std::unique_ptr<bucket_moo::Transport::Exchange> under_way;
};

bool gathers(TcpTransport& network) {
  std::vector<std::byte> blocks(kRanks * kBytes);
  for (std::size_t i = 0; i < kBytes; ++i) blocks[network.rank() * kBytes + i] = value(9, network.rank(), 0, i);
  network.all_gather(blocks.data(), kBytes);
  for (int from = 0; from < kRanks; ++from) {
    for (std::size_t i = 0; i < kBytes; ++i) {
      if (blocks[from * kBytes + i] != value(9, from, 0, i)) return false;
    }
  }
  return true;
}

bool rank_main(int rank, const std::string& address, const std::function<void(const std::string&)>& listening) {
  TcpTransport network(rank, kRanks, address, std::chrono::seconds(60), listening);
  std::unique_ptr<AllToAll> ahead;
  if (rank == 1) ahead = std::make_unique<AllToAll>(network, 3, Sequence::ahead);
  AllToAll first(network, 1, Sequence::main), second(network, 2, Sequence::main);
  if (rank != 1) ahead = std::make_unique<AllToAll>(network, 3, Sequence::ahead);
  const bool ahead_first = rank == 2 && ahead->arrives();  // each rank waits in another order
  const bool both = second.arrives() && first.arrives();
  return both && (ahead_first || ahead->arrives()) && gathers(network);
}

}  // namespace

int main() {
  std::promise<std::string> address;
  const std::shared_future<std::string> known = address.get_future().share();
  std::vector<std::future<bool>> ranks;
  ranks.push_back(std::async(std::launch::async, rank_main, 0, "127.0.0.1:0",
                             [&](const std::string& at) { address.set_value(at); }));
  for (int rank = 1; rank < kRanks; ++rank) {
    ranks.push_back(std::async(std::launch::async, rank_main, rank, known.get(), nullptr));
  }
  bool all = true;
  for (std::future<bool>& rank : ranks) all = rank.get() && all;
  std::puts(all ? "all arrived" : "wrong bytes");
}
