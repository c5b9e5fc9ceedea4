// Trains one small network on as many objectives as there are ranks, over any Transport. Each rank has the data of one
// objective and takes its gradient; the collective makes one update of them.
#pragma once

#include <cerrno>
#include <cmath>
#include <collective/moo_collective.hpp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

namespace example {

namespace bm = bucket_moo;

inline constexpr int kInputs = 6;
inline constexpr int kHidden = 10;
inline constexpr int kExamples = 32;
inline constexpr double kLearningRate = 0.1;

/// y = v . tanh(U x + b), in one vector: U [kHidden, kInputs], b [kHidden], v [kHidden].
inline constexpr int kBias = kHidden * kInputs;
inline constexpr int kOutput = kBias + kHidden;
inline constexpr int kParameters = kOutput + kHidden;

inline std::vector<double> first_parameters() {
  std::vector<double> parameters(kParameters);
  for (int i = 0; i < kParameters; ++i) {
    parameters[i] = 0.5 * std::sin(1.0 + 7.0 * i);
  }
  return parameters;
}

/// What this objective asks for: a line of inputs and a target for each example. Objectives agree on the inputs' part
/// and differ in the rest, so that their gradients conflict.
struct Data {
  explicit Data(int objective) : x(kExamples * kInputs), y(kExamples) {
    for (int e = 0; e < kExamples; ++e) {
      double sum = 0.0;
      for (int i = 0; i < kInputs; ++i) {
        x[e * kInputs + i] = std::sin(1.7 * e + 0.9 * i * i + 0.3 * objective);
        sum += x[e * kInputs + i];
      }
      y[e] = (1.0 + objective) * std::sin(sum) * std::cos(objective);
    }
  }
  std::vector<double> x, y;
};

/// The mean squared error, and its gradient.
inline double loss(const std::vector<double>& parameters, const Data& data, std::vector<double>& gradient) {
  gradient.assign(kParameters, 0.0);
  double sum = 0.0;
  for (int e = 0; e < kExamples; ++e) {
    const double* const x = &data.x[e * kInputs];
    double hidden[kHidden], y = 0.0;
    for (int h = 0; h < kHidden; ++h) {
      double before = parameters[kBias + h];
      for (int i = 0; i < kInputs; ++i) before += parameters[h * kInputs + i] * x[i];
      hidden[h] = std::tanh(before);
      y += parameters[kOutput + h] * hidden[h];
    }
    const double error = y - data.y[e];
    sum += error * error;
    const double slope = 2.0 * error / kExamples;
    for (int h = 0; h < kHidden; ++h) {
      gradient[kOutput + h] += slope * hidden[h];
      const double of_hidden = slope * parameters[kOutput + h] * (1.0 - hidden[h] * hidden[h]);
      gradient[kBias + h] += of_hidden;
      for (int i = 0; i < kInputs; ++i) gradient[h * kInputs + i] += of_hidden * x[i];
    }
  }
  return sum / kExamples;
}

/// The losses of all ranks, on rank 0.
inline void print_losses(const char* when, double own, bm::Transport& network) {
  std::vector<double> losses(static_cast<std::size_t>(network.size()));
  losses[static_cast<std::size_t>(network.rank())] = own;
  network.all_gather(reinterpret_cast<std::byte*>(losses.data()), sizeof own);
  if (network.rank() == 0) {
    std::printf("%s:", when);
    for (const double value : losses) std::printf(" %.4f", value);
    std::printf("\n");
  }
}

/// Rank 0 prints losses and weights, and writes the parameters to `file`, one a line, if it is not null.
inline void train(const std::shared_ptr<bm::Transport>& network, const char* file, int steps = 60) {
  const int rank = network->rank();
  bm::MooCollective collective(network, {.id = bm::MethodId::mgda});

  const Data data(rank);
  std::vector<double> parameters = first_parameters(), gradient;
  print_losses("losses at first", loss(parameters, data, gradient), *network);

  for (int step = 1; step <= steps; ++step) {
    loss(parameters, data, gradient);

    bm::StepRecord record;  // who this rank is, and what it is about to do
    record.objective = bm::make_objective_name("task " + std::to_string(rank));
    record.step = step;
    record.numel = kParameters;
    record.dtype = static_cast<std::int32_t>(bm::DType::float64);
    record.operation = static_cast<std::int32_t>(bm::Operation::all_reduce);
    collective.begin_pass(record);

    constexpr std::int64_t kAtOnce = kParameters * sizeof(double);  // bytes of other ranks' data held at a time
    const bm::RandomKey key{.seed = 0, .step = static_cast<std::uint64_t>(step), .bucket = 0};
    const bm::BucketSolution solved =
        collective.all_reduce(gradient.data(), kParameters, bm::DType::float64, key, kAtOnce);
    if (rank == 0 && step == 1) {
      std::printf("weights of the first step:");
      for (const double weight : solved.weights) std::printf(" %.4f", weight);
      std::printf("\n");
      std::fflush(stdout);  // whoever reads it sees that training has begun
    }
    for (int i = 0; i < kParameters; ++i) {
      parameters[i] -= kLearningRate * gradient[i];
    }
  }
  print_losses("losses at last", loss(parameters, data, gradient), *network);

  if (rank == 0 && file != nullptr) {
    std::FILE* const out = std::fopen(file, "w");
    if (out == nullptr) throw std::system_error(errno, std::generic_category(), file);
    for (const double value : parameters) std::fprintf(out, "%.17g\n", value);
    std::fclose(out);
  }
}

}  // namespace example
