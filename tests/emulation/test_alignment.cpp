// That kernels which use memory at a misaligned address are found out: each kind of access, aligned and not.
#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <string>

#include "checks.hpp"
#include "elements.cuh"
#include "launch.cuh"

namespace {

namespace cuda = bucket_moo::cuda;
using bucket_moo::DType;

// As the kernels read and write rows.

__global__ void load_vector(const std::byte* from, std::byte* to) {
  if (threadIdx.x == 0) *to = static_cast<std::byte>(cuda::load_vector<DType::float32>(from, 0).word[3]);
}

__global__ void store_vector(const std::byte* from, std::byte* to) {
  const cuda::Vector vector{{static_cast<std::uint32_t>(*from), 2u, 3u, 4u}};
  if (threadIdx.x == 0) cuda::store_vector<DType::bfloat16>(to, 0, vector);
}

template <class T>
__global__ void load(const std::byte* from, std::byte* to) {
  if (threadIdx.x == 0) *to = static_cast<std::byte>(*reinterpret_cast<const T*>(from));
}

template <class T>
__global__ void store(const std::byte* from, std::byte* to) {
  if (threadIdx.x == 0) *reinterpret_cast<T*>(to) = static_cast<T>(*from);
}

__global__ void load_pair(const std::byte* from, std::byte* to) {
  if (threadIdx.x == 0) *to = static_cast<std::byte>(reinterpret_cast<const float2*>(from)->x);
}

using Kernel = void (*)(const std::byte*, std::byte*);

/// What the emulation says of a launch, in a process of its own: the CPU itself refuses some of these accesses.
/// \param ended how the process did
std::string message_of(Kernel kernel, const std::byte* from, std::byte* to, int* ended) {
  int ends[2] = {};
  CHECK(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    const bool launched = cuda::launch(kernel, {1, 32}, nullptr, from, to) == cudaSuccess;
    _exit(launched ? 0 : 1);
  }
  close(ends[1]);
  std::string message;
  char text[256];
  for (ssize_t bytes = 0; (bytes = read(ends[0], text, sizeof(text))) > 0;) {
    message.append(text, static_cast<std::size_t>(bytes));
  }
  close(ends[0]);
  CHECK(waitpid(child, ended, 0) == child);
  return message;
}

/// \param part of the message
void check(Kernel kernel, bool stores, std::size_t alignment, const std::string& part) {
  alignas(16) std::byte memory[64] = {};
  alignas(16) std::byte other[16] = {};
  for (std::size_t at = 0; at < 32; ++at) {
    checks::context = part + " at byte " + std::to_string(at);
    std::byte* const place = memory + at;
    int ended = 0;
    const std::string message = message_of(kernel, stores ? other : place, stores ? place : other, &ended);
    if (at % alignment == 0) {
      CHECK(message.empty() && WIFEXITED(ended) && WEXITSTATUS(ended) == 0);
    } else {
      CHECK(WIFSIGNALED(ended) && WTERMSIG(ended) == SIGABRT);
      CHECK(message.find(part) != std::string::npos);
      CHECK(message.find(" " + std::to_string(at % alignment) + " bytes past") != std::string::npos);
    }
  }
  checks::context.clear();
}

}  // namespace

int main() {
  check(load_vector, false, 16, "elements.cuh");
  check(store_vector, true, 16, "elements.cuh");
  check(load_pair, false, 8, "float2");
  check(load<double>, false, 8, "double");
  check(store<double>, true, 8, "double");
  check(load<float>, false, 4, "float");
  check(load<std::uint16_t>, false, 2, "short unsigned int");
  return checks::finish();
}
