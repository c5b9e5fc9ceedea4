// Trains the network of train_network.hpp over TCP.
//
//   train RANK SIZE HOST:PORT [FILE [STEPS [SECONDS]]]
//
// HOST:PORT is where rank 0 listens, as other ranks reach it; with port 0 the system chooses one, and rank 0 says which
// on standard error. FILE: where rank 0 writes the parameters, one a line; "" is nowhere. SECONDS: how long to wait for
// a peer.
#include <chrono>
#include <cstdio>
#include <exception>
#include <memory>
#include <string>

#include "../train_network.hpp"
#include "tcp_transport.hpp"

int main(int argc, char** argv) {
  if (argc < 4 || argc > 7) {
    std::fprintf(stderr, "usage: %s RANK SIZE HOST:PORT [FILE [STEPS [SECONDS]]]\n", argv[0]);
    return 2;
  }
  try {
    const int rank = std::stoi(argv[1]), size = std::stoi(argv[2]);
    const std::chrono::seconds timeout(argc > 6 ? std::stoi(argv[6]) : 60);
    const auto network = std::make_shared<TcpTransport>(rank, size, argv[3], timeout, [](const std::string& at) {
      std::fprintf(stderr, "rank 0 at %s\n", at.c_str());
    });
    const bool writes = argc > 4 && argv[4][0] != '\0';
    example::train(network, writes ? argv[4] : nullptr, argc > 5 ? std::stoi(argv[5]) : 60);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
