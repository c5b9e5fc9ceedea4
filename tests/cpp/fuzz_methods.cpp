// Any bytes as method, options, K, Gramian and state: no crash, no hang, a known status, finite weights.
//
//   fuzz_methods FILE        one input; "-" is standard input
//   fuzz_methods COUNT SEED  that many inputs from a generator
//
// Build with -fsanitize=address,undefined; with clang also as a libFuzzer target, which is guided by coverage:
//   clang++ -std=c++20 -O1 -Icpp/include -DBUCKET_MOO_LIBFUZZER -fsanitize=fuzzer,address,undefined fuzz_methods.cpp
// The first byte picks the method, the second K, the third how the rest is
// read: as the bits of doubles, or as milder numbers that get past the check for NaN and Inf.

#include <algorithm>
#include <bucket_moo/solve.hpp>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace {

using Bytes = std::vector<unsigned char>;

/// Reads an input front to back; zeros after its end.
class Reader {
 public:
  explicit Reader(const Bytes& bytes) : bytes_(&bytes) {}
  unsigned char byte() { return next_ < bytes_->size() ? (*bytes_)[next_++] : static_cast<unsigned char>(0); }
  double bits() {
    std::uint64_t word = 0;
    for (int i = 0; i < 8; ++i) word = word << 8 | byte();
    double value = 0;
    std::memcpy(&value, &word, sizeof value);
    return value;
  }

 private:
  const Bytes* bytes_;
  std::size_t next_ = 0;
};

double number(Reader& reader, int mode) {
  switch (mode % 6) {
    case 0:
      return reader.bits();
    case 1: {  // any finite double
      const double value = reader.bits();
      return std::isfinite(value) ? value : 1.0;
    }
    case 2:
      return static_cast<double>(static_cast<signed char>(reader.byte()));
    case 3:  // many decades
      return std::ldexp(static_cast<double>(static_cast<signed char>(reader.byte())),
                        8 * static_cast<signed char>(reader.byte()) / 4);
    case 4:  // ties
      return static_cast<double>(reader.byte() % 3) - 1.0;
    default:
      return static_cast<double>(static_cast<signed char>(reader.byte())) * 0x1p-500;
  }
}

/// \return what is wrong, or nothing
std::string run(const Bytes& bytes) {
  using namespace bucket_moo;
  Reader reader(bytes);
  Method method;
  method.id = static_cast<MethodId>(reader.byte() % kMethods);
  const int k = 1 + reader.byte() % kMaxObjectives;
  const auto size = static_cast<std::size_t>(k);
  const int mode = reader.byte();
  const int flags = reader.byte();

  std::vector<double> preference(size);
  for (double& x : preference) x = number(reader, mode);
  std::vector<int> order(size * size);
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = (static_cast<int>(i) + flags) % k;
  const double option = number(reader, reader.byte());
  method.mean.weights = (flags & 1) != 0 ? preference.data() : nullptr;
  method.mgda.normalize = (flags & 2) != 0 ? Normalize::l2 : Normalize::none;
  method.cagrad = {(flags & 4) != 0 ? std::fabs(option) : 0.4, (flags & 2) != 0};
  method.pcgrad = {(flags & 4) != 0 ? PcgradReduction::sum : PcgradReduction::mean,
                   (flags & 8) != 0 ? order.data() : nullptr};
  method.upgrad.preference = method.dualproj.preference = method.aligned_mtl.preference = method.config.preference =
      method.mean.weights;
  method.aligned_mtl.scale_mode = static_cast<ScaleMode>(flags % 3);
  method.nash_mtl.max_norm = (flags & 4) != 0 ? option : 1.0;
  method.fairgrad.alpha = (flags & 4) != 0 ? option : 1.0;
  method.gradvac = {(flags & 4) != 0 ? option : 0.5, (flags & 8) != 0 ? order.data() : nullptr};
  method.krum = {static_cast<signed char>(reader.byte()), static_cast<signed char>(reader.byte())};
  method.smoothing.alpha = (flags & 16) != 0 ? 0.9 : option;

  std::vector<double> gramian(size * size);
  if ((flags & 32) != 0) {  // of gradients, in long double so that only the result can overflow
    const std::size_t n = 1 + reader.byte() % (2 * size);
    std::vector<double> rows(size * n);
    for (double& x : rows) x = number(reader, mode);
    for (std::size_t i = 0; i < size; ++i) {
      for (std::size_t j = 0; j < size; ++j) {
        long double product = 0;
        for (std::size_t x = 0; x < n; ++x)
          product += static_cast<long double>(rows[i * n + x]) * static_cast<long double>(rows[j * n + x]);
        gramian[i * size + j] =
            std::fabs(product) <= static_cast<long double>(kLargest) ? static_cast<double>(product) : 1.0;
      }
    }
  } else {
    for (double& x : gramian) x = number(reader, mode);
  }

  std::vector<double> state(state_size(method, k));
  if ((flags & 64) != 0) {
    for (double& x : state) x = number(reader, mode);
  }
  std::vector<double> weights(size, std::numeric_limits<double>::quiet_NaN());
  std::vector<double> scratch(solve_scratch_size(method.id, k), std::numeric_limits<double>::quiet_NaN());
  for (int step = 0; step < 2; ++step) {
    const double* given = gramian.data();
    if (step == 1) {
      double* const inside = scratch.data() + gramian_in_scratch(method.id, k);
      std::copy(gramian.begin(), gramian.end(), inside);
      given = inside;
    }
    const Solution solution =
        solve(HostLanes{}, method, {1, static_cast<std::uint64_t>(step), 3}, k, given, weights.data(), scratch.data(),
              (flags & 128) != 0 && !state.empty() ? state.data() : nullptr);
    const int status = static_cast<int>(solution.status);
    if (status < 0 || status > static_cast<int>(Status::fallback)) return "status " + std::to_string(status);
    if (!(solution.residual >= 0.0)) return "residual " + std::to_string(solution.residual);
    if (solution.active < 0 || solution.active > k) return "active";
    for (const double w : weights) {
      if (!std::isfinite(w)) return "weight " + std::to_string(w);
    }
  }
  return {};
}

Bytes generated(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Bytes bytes(4);
  for (unsigned char& b : bytes) b = static_cast<unsigned char>(random());
  if (random() % 4 != 0) bytes[1] = static_cast<unsigned char>(random() % 12);  // mostly small K: faster
  const std::size_t size = 64 + random() % 70000 / (bytes[1] < 12 ? 20 : 1);
  while (bytes.size() < size) {
    const std::uint64_t word = random();
    for (int i = 0; i < 64; i += 8) bytes.push_back(static_cast<unsigned char>(word >> i));
  }
  return bytes;
}

bool report(const Bytes& bytes, const std::string& what) {
  const std::string problem = run(bytes);
  if (problem.empty()) return true;
  std::printf("FAILED %s: method %d, K %d, mode %d, flags %d: %s\n", what.c_str(), bytes[0] % bucket_moo::kMethods,
              1 + bytes[1] % 64, bytes[2] % 6, bytes[3], problem.c_str());
  return false;
}

}  // namespace

#ifdef BUCKET_MOO_LIBFUZZER

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  Bytes bytes(data, data + size);
  bytes.resize(std::max<std::size_t>(bytes.size(), 4));
  if (!report(bytes, "input")) std::abort();
  return 0;
}

#else

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: fuzz_methods FILE | fuzz_methods COUNT SEED\n");
    return 2;
  }
  if (argc == 2) {
    Bytes bytes;
    if (std::string(argv[1]) == "-") {
      bytes.assign(std::istreambuf_iterator<char>(std::cin), {});
    } else {
      std::ifstream file(argv[1], std::ios::binary);
      bytes.assign(std::istreambuf_iterator<char>(file), {});
    }
    bytes.resize(std::max<std::size_t>(bytes.size(), 4));
    return report(bytes, argv[1]) ? 0 : 1;
  }
  const long count = std::atol(argv[1]);
  const std::uint64_t first = std::strtoull(argv[2], nullptr, 10);
  long failed = 0;
  double slowest = 0;
  std::uint64_t slowest_seed = 0;
  for (long i = 0; i < count; ++i) {
    const std::uint64_t seed = first + static_cast<std::uint64_t>(i);
    const Bytes bytes = generated(seed);
    const auto start = std::chrono::steady_clock::now();
    if (!report(bytes, "seed " + std::to_string(seed))) ++failed;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (seconds > slowest) {
      slowest = seconds;
      slowest_seed = seed;
    }
  }
  std::printf("%ld inputs, %ld failed; slowest %.3f s (seed %llu)\n", count, failed, slowest,
              static_cast<unsigned long long>(slowest_seed));
  return failed == 0 ? 0 : 1;
}

#endif
