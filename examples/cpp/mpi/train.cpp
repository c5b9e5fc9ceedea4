// Trains the network of training.hpp over MPI.
//
//   mpirun -n 4 train [FILE]      FILE: where the parameters go afterwards, one a line
#include <mpi.h>

#include <cstdio>
#include <exception>
#include <memory>

#include "../training.hpp"
#include "mpi_transport.hpp"

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  try {
    train(std::make_shared<MpiTransport>(MPI_COMM_WORLD), argc > 1 ? argv[1] : nullptr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);  // other ranks wait for this one
  }
  MPI_Finalize();
}
