// Trains the network of train_network.hpp over MPI.
//
//   mpirun -n 4 train [FILE]      FILE: where the parameters go afterwards, one a line
#include <cstdio>
#include <exception>
#include <memory>

#include "../train_network.hpp"
#include "mpi_transport.hpp"

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  try {
    example::train(std::make_shared<MpiTransport>(MPI_COMM_WORLD), argc > 1 ? argv[1] : nullptr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);  // other ranks wait for this one
  }
  MPI_Finalize();
}
