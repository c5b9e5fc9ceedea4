// Trains the network of training.hpp over TCP, a process a rank:
//
//   train RANK SIZE HOST:PORT [FILE]
//
// HOST:PORT: where rank 0 listens, IPv4; port 0: any, which it prints. FILE: where the parameters go, one a line.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>

#include "../training.hpp"
#include "socket_transport.hpp"

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s RANK SIZE HOST:PORT [FILE]\n", argv[0]);
    return 2;
  }
  try {
    const char* const seconds = std::getenv("TIMEOUT");
    const std::chrono::seconds timeout(seconds != nullptr ? std::stoi(seconds) : 30);
    train(std::make_shared<SocketTransport>(std::stoi(argv[1]), std::stoi(argv[2]), argv[3], timeout),
          argc > 4 ? argv[4] : nullptr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
