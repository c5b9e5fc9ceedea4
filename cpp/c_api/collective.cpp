// The collective over a transport of callbacks.
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bucket_moo/objective_table.hpp"
#include "bucket_moo/state_layout.hpp"
#include "c_api/callback_transport.hpp"
#include "c_api/method.hpp"
#include "c_api/rows.hpp"
#include "collective/agreed_error.hpp"
#include "collective/configuration.hpp"
#include "collective/moo_collective.hpp"
#include "collective/objectives.hpp"
#include "collective/sketch_options.hpp"

namespace bucket_moo::c_api {
namespace {

/// What is reduced, once it is checked.
struct Data {
  void* output = nullptr;
  const void* input = nullptr;  ///< null: the output is
  std::int64_t n = 0;           ///< of the output
  DType dtype = DType::float32;
};

/// What a method remembers of a bucket.
struct Memory {
  std::vector<std::string> objectives;
  std::vector<double> state;
};

/// What all ranks must have alike.
Configuration configuration_of(const MethodConfig& config, const bucket_moo_collective_options& options) {
  Configuration fields = config.printed();
  fields.emplace_back("version", BUCKET_MOO_VERSION);
  fields.emplace_back("seed", std::to_string(options.seed));
  fields.emplace_back("tile_limit", std::to_string(options.tile_limit));
  fields.emplace_back("sketch_width", std::to_string(options.sketch_width));
  return fields;
}

std::shared_ptr<Transport> checked_transport(const bucket_moo_transport* given) {
  if (given == nullptr) {
    return nullptr;
  }
  const bucket_moo_transport functions = read_struct(given, "bucket_moo_transport");
  require(functions.size >= 1, "bucket_moo_transport.size must be >= 1; got ", functions.size);
  require(functions.rank >= 0 && functions.rank < functions.size, "bucket_moo_transport.rank must be from 0 to ",
          functions.size - 1, "; got ", functions.rank);
  require(functions.size == 1 || (functions.all_to_all != nullptr && functions.all_gather != nullptr),
          "bucket_moo_transport.all_to_all and all_gather must not be NULL");
  return functions.size == 1 ? nullptr : std::make_shared<CallbackTransport>(functions);
}

bucket_moo_collective_options checked_options(const bucket_moo_collective_options* given) {
  bucket_moo_collective_options options = read_struct(given, "bucket_moo_collective_options");
  require(options.tile_limit >= 0, "bucket_moo_collective_options.tile_limit must be >= 0; got ", options.tile_limit);
  require(options.sketch_width == 0 || is_sketch_width(options.sketch_width),
          "bucket_moo_collective_options.sketch_width must be 0 or a power of two from ", kMinSketchWidth, " to ",
          kMaxSketchWidth, "; got ", options.sketch_width);
  if (options.tile_limit == 0) {
    options.tile_limit = std::numeric_limits<std::int64_t>::max();
  }
  return options;
}

}  // namespace
}  // namespace bucket_moo::c_api

namespace c_api = bucket_moo::c_api;

struct bucket_moo_collective {
 public:
  bucket_moo_collective(std::shared_ptr<bucket_moo::Transport> transport, const bucket_moo::MethodConfig& config,
                        const bucket_moo_collective_options& options)
      : transport_(std::move(transport)),
        config_(config),
        options_(options),
        sketch_{.width = options.sketch_width, .seed = options.seed},
        collective_(transport_, config_.method()) {}

  int rank() const { return collective_.rank(); }
  int world_size() const { return collective_.world_size(); }

  /// \param check  () -> Data: throws std::invalid_argument for what other ranks then hear of
  template <class Check>
  int reduce(bucket_moo::Operation operation, const bucket_moo_call* given, bucket_moo_reduction* reduction,
             const Check& check) noexcept;

 private:
  void agree(const bucket_moo::StepRecord& record);
  bucket_moo::StepRecord record_of(const bucket_moo_call& call, bucket_moo::Operation operation,
                                   const c_api::Data& data) const;
  bucket_moo::BucketSolution reduce(const bucket_moo_call& call, const c_api::Data& data);
  double* state_of(std::uint64_t bucket);
  void show(bucket_moo::BucketSolution solved, bucket_moo_reduction* reduction);

  const std::shared_ptr<bucket_moo::Transport> transport_;
  const bucket_moo::MethodConfig config_;  // to which the collective's method points
  const bucket_moo_collective_options options_;
  const bucket_moo::SketchOptions sketch_;
  bucket_moo::MooCollective collective_;
  bool is_configuration_checked_ = false;
  std::map<std::uint64_t, c_api::Memory> memories_;  // by bucket
  bucket_moo::BucketSolution newest_;
  std::vector<std::string> objectives_;  // of the newest
  std::vector<const char*> names_;       // likewise
  int failure_ = BUCKET_MOO_OK;          // for good
  std::string failure_text_;
};

/// Refused arguments are told to the other ranks, which wait for this one's record.
template <class Check>
int bucket_moo_collective::reduce(bucket_moo::Operation operation, const bucket_moo_call* given,
                                  bucket_moo_reduction* reduction, const Check& check) noexcept {
  if (failure_ != BUCKET_MOO_OK) {
    return c_api::keep_error(failure_, failure_text_.c_str());
  }
  std::string refusal;
  const int error = c_api::guarded([&] {
    bucket_moo_call call{};
    c_api::Data data;
    bucket_moo::StepRecord record;
    try {
      call = c_api::read_struct(given, "bucket_moo_call");
      c_api::check_out_struct(reduction, "bucket_moo_reduction");
      data = check();
      record = record_of(call, operation, data);
    } catch (const std::invalid_argument& wrong) {
      refusal = wrong.what();
      record.operation = static_cast<std::int32_t>(bucket_moo::Operation::invalid);
    }
    agree(record);
    show(reduce(call, data), reduction);
  });
  if (error == BUCKET_MOO_DISAGREEMENT) {
    return refusal.empty() ? error : c_api::keep_error(BUCKET_MOO_INVALID_ARGUMENT, refusal.c_str());
  }
  if (error == BUCKET_MOO_OK) {
    return error;
  }
  // The ranks are out of step. What is invalid now, after the arguments, is what another rank has sent.
  failure_ = error == BUCKET_MOO_INVALID_ARGUMENT ? BUCKET_MOO_TRANSPORT_FAILED : error;
  c_api::guarded([&] { failure_text_ = bucket_moo_last_error(); });
  return failure_;
}

void bucket_moo_collective::agree(const bucket_moo::StepRecord& record) {
  if (!is_configuration_checked_) {
    const auto all_gather = [this](std::span<std::byte> blocks) {
      transport_->all_gather(blocks.data(), blocks.size() / static_cast<std::size_t>(world_size()));
    };
    bucket_moo::check_same_configuration(rank(), world_size(), all_gather, c_api::configuration_of(config_, options_));
    is_configuration_checked_ = true;
  }
  collective_.begin_pass(record);
  const std::string wrong = config_.mismatch(collective_.objectives().k());
  if (!wrong.empty()) {
    throw bucket_moo::AgreedError(wrong);
  }
}

bucket_moo::StepRecord bucket_moo_collective::record_of(const bucket_moo_call& call, bucket_moo::Operation operation,
                                                        const c_api::Data& data) const {
  const std::string name = call.objective == nullptr ? std::to_string(rank()) : call.objective;
  c_api::require(!name.empty() && name.size() <= bucket_moo::kMaxObjectiveName,
                 "bucket_moo_call.objective must be 1 to ", bucket_moo::kMaxObjectiveName, " bytes; got ", name.size());
  c_api::require(std::isfinite(call.weight) && call.weight >= 0.0,
                 "bucket_moo_call.weight must be finite and >= 0; got ", call.weight);
  c_api::require(call.is_left_out == 0 || call.is_left_out == 1, "bucket_moo_call.is_left_out must be 0 or 1; got ",
                 call.is_left_out);
  bucket_moo::StepRecord record;
  record.objective = bucket_moo::make_objective_name(name);
  record.weight = call.is_left_out == 1 ? 0.0 : call.weight == 0.0 ? 1.0 : call.weight;
  record.step = call.step;
  record.numel = data.n;
  record.dtype = static_cast<std::int32_t>(data.dtype);
  record.operation = static_cast<std::int32_t>(operation);
  record.bucket = call.bucket;
  return record;
}

bucket_moo::BucketSolution bucket_moo_collective::reduce(const bucket_moo_call& call, const c_api::Data& data) {
  const bool scatters = data.input != nullptr;
  const bucket_moo::RandomKey key{options_.seed, static_cast<std::uint64_t>(call.step), call.bucket};
  double* const state = state_of(call.bucket);
  const std::int64_t elements = scatters ? data.n * world_size() : data.n;
  const std::int64_t width = sketch_.width_for(elements);
  if (width == 0) {
    return scatters ? collective_.reduce_scatter(data.output, data.input, data.n, data.dtype, key, options_.tile_limit,
                                                 state)
                    : collective_.all_reduce(data.output, data.n, data.dtype, key, options_.tile_limit, state);
  }
  auto sketch = collective_.start_sketch(scatters ? data.input : data.output, elements, data.dtype, key, width);
  bucket_moo::BucketSolution solved = collective_.solve_sketched(std::move(sketch), key, state);
  if (scatters) {
    collective_.weighted_reduce_scatter(data.output, data.input, data.n, data.dtype, solved.weights,
                                        bucket_moo::ZeroRows::skip);
  } else {
    collective_.weighted_all_reduce(data.output, data.n, data.dtype, solved.weights, bucket_moo::ZeroRows::skip);
  }
  return solved;
}

/// What the method remembers of the bucket and the objectives of this call; null: nothing.
double* bucket_moo_collective::state_of(std::uint64_t bucket) {
  const std::vector<std::string>& objectives = collective_.objectives().names;
  const std::size_t size = bucket_moo::state_size(config_.method(), static_cast<int>(objectives.size()));
  if (size == 0) {
    return nullptr;
  }
  c_api::Memory& memory = memories_[bucket];
  if (memory.objectives != objectives) {
    memory = {objectives, std::vector<double>(size)};
  }
  return memory.state.data();
}

void bucket_moo_collective::show(bucket_moo::BucketSolution solved, bucket_moo_reduction* reduction) {
  newest_ = std::move(solved);
  objectives_ = collective_.objectives().names;
  names_.clear();
  for (const std::string& name : objectives_) {
    names_.push_back(name.c_str());
  }
  c_api::write_struct(reduction, {.struct_size = 0,
                                  .objectives = static_cast<std::int32_t>(names_.size()),
                                  .status = static_cast<std::int32_t>(newest_.solution.status),
                                  .iterations = newest_.solution.iterations,
                                  .active = newest_.solution.active,
                                  .residual = newest_.solution.residual,
                                  .weights = newest_.weights.data(),
                                  .gramian = newest_.gramian.data(),
                                  .objective = names_.data()});
}

int bucket_moo_collective_create(const bucket_moo_transport* transport, const bucket_moo_method* method,
                                 const bucket_moo_collective_options* options, bucket_moo_collective** collective) {
  return c_api::guarded([&] {
    c_api::require(collective != nullptr, "collective must not be NULL");
    *collective = new bucket_moo_collective(c_api::checked_transport(transport), c_api::config_of(method),
                                            c_api::checked_options(options));
  });
}

void bucket_moo_collective_destroy(bucket_moo_collective* collective) { delete collective; }

int bucket_moo_all_reduce(bucket_moo_collective* collective, const bucket_moo_call* call, void* data, int64_t n,
                          int dtype, bucket_moo_reduction* reduction) {
  if (collective == nullptr) {
    return c_api::keep_error(BUCKET_MOO_INVALID_ARGUMENT, "bucket_moo: collective must not be NULL");
  }
  return collective->reduce(bucket_moo::Operation::all_reduce, call, reduction, [&] {
    const bucket_moo::DType type = c_api::dtype_of(dtype);
    c_api::check_elements(n, "n");
    c_api::require(data != nullptr || n == 0, "data must not be NULL");
    return c_api::Data{data, nullptr, n, type};
  });
}

int bucket_moo_reduce_scatter(bucket_moo_collective* collective, const bucket_moo_call* call, void* output,
                              const void* input, int64_t shard, int dtype, bucket_moo_reduction* reduction) {
  if (collective == nullptr) {
    return c_api::keep_error(BUCKET_MOO_INVALID_ARGUMENT, "bucket_moo: collective must not be NULL");
  }
  return collective->reduce(bucket_moo::Operation::reduce_scatter, call, reduction, [&] {
    const bucket_moo::DType type = c_api::dtype_of(dtype);
    c_api::check_elements(shard, "shard");
    c_api::require(output != nullptr && input != nullptr, "output and input must not be NULL");
    return c_api::Data{output, input, shard, type};
  });
}
