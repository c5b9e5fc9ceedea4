#include "hooks/bucket_moo_state.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/core/jit_type.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>

#include "collective/dtype.hpp"

namespace bucket_moo {
namespace {

void check_dense(const at::Tensor& tensor, const char* what) {
  TORCH_CHECK_VALUE(tensor.defined(), "bucket_moo_ext: ", what, " must be a tensor, got an undefined one");
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), "bucket_moo_ext: ", what,
                    " must be on the CPU (this build reduces CPU tensors over Gloo); got device ", tensor.device());
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided, "bucket_moo_ext: ", what, " must be dense; got layout ",
                    tensor.layout());
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "bucket_moo_ext: ", what, " must be contiguous; got sizes ", tensor.sizes(),
                    " with strides ", tensor.strides());
  dtype_of(tensor.scalar_type(), what);
}

std::string shape_of(const at::Tensor& parameter) {
  std::ostringstream text;
  text << "parameter" << parameter.sizes();
  return text.str();
}

/// By what solver states know the elements of a call that has no parameters.
SolverStates::Parameter call_label(const char* operation, std::int64_t numel) {
  std::ostringstream text;
  text << operation << "[" << numel << "]";
  return {text.str(), numel};
}

std::string nth_label(std::size_t n) {
  std::ostringstream text;
  text << "#" << n;
  return text.str();
}

}  // namespace

BucketMooState::BucketMooState(c10::intrusive_ptr<c10d::ProcessGroup> group, MethodConfig method, std::uint64_t seed,
                               std::int64_t bucket_cap, Configuration configuration)
    : group_(std::move(group)),
      transport_(group_ ? std::make_shared<PointToPointTransport>(group_) : nullptr),
      method_(std::move(method)),
      seed_(seed),
      bucket_cap_(bucket_cap),
      configuration_(std::move(configuration)),
      collective_(transport_, method_.method()),
      objective_(std::to_string(collective_.rank())),
      solver_states_(method_.method()) {}

BucketMooState::~BucketMooState() { shutdown(); }

void BucketMooState::set_objective(std::string name) {
  TORCH_CHECK_VALUE(!name.empty() && name.size() <= kMaxObjectiveName && name.find('\0') == std::string::npos,
                    "bucket_moo_ext: objective must be 1 to ", kMaxObjectiveName,
                    " bytes of UTF-8 without a zero byte; got ", name.size(), " bytes: '", name, "'");
  const std::lock_guard lock(mutex_);
  objective_ = std::move(name);
}

void BucketMooState::set_weight(double weight) {
  TORCH_CHECK_VALUE(std::isfinite(weight) && weight >= 0.0, "bucket_moo_ext: weight must be finite and >= 0; got ",
                    weight);
  const std::lock_guard lock(mutex_);
  weight_ = weight;
}

void BucketMooState::name_parameters(const std::vector<std::pair<std::string, at::Tensor>>& named) {
  const std::lock_guard lock(mutex_);
  for (const auto& [name, parameter] : named) {
    parameter_names_[parameter.unsafeGetTensorImpl()] = name;
  }
}

FuturePtr BucketMooState::run_bucket(c10d::GradBucket& bucket, c10::IValue result) {
  Job job;
  job.operation = Operation::ddp_bucket;
  job.output = bucket.getBufferRef();
  job.result = std::move(result);
  job.index = static_cast<std::int64_t>(bucket.getIndex());
  job.starts_step = job.index == 0;
  if (!job.output.is_sparse()) {
    check_dense(job.output, "a DDP bucket");
  }
  const std::vector<at::Tensor> parameters = bucket.getParameters();
  // DDP closes a bucket once it has reached the cap, hence a regular one holds at most this.
  job.tile_limit = bucket_cap_;
  for (const at::Tensor& parameter : parameters) {
    job.tile_limit = std::max(job.tile_limit, bucket_cap_ + static_cast<std::int64_t>(parameter.nbytes()));
  }
  {
    const std::lock_guard lock(mutex_);
    for (const at::Tensor& parameter : parameters) {
      const void* const identity = parameter.unsafeGetTensorImpl();
      const auto found = parameter_names_.find(identity);
      job.key.push_back(identity);
      job.parameters.push_back(found == parameter_names_.end() ? shape_of(parameter) : found->second);
      // Ranks meet their parameters in the same order, and so does a later run.
      const std::string label = found == parameter_names_.end() ? nth_label(state_labels_.size()) : found->second;
      job.state_key.push_back({state_labels_.emplace(identity, label).first->second, parameter.numel()});
    }
  }
  return submit(std::move(job));
}

FuturePtr BucketMooState::all_reduce(at::Tensor tensor) {
  check_dense(tensor, "tensor");
  Job job;
  job.operation = Operation::all_reduce;
  job.tile_limit = static_cast<std::int64_t>(tensor.nbytes());
  job.state_key = {call_label("all_reduce", tensor.numel())};
  job.output = std::move(tensor);
  job.starts_step = true;
  return submit(std::move(job));
}

FuturePtr BucketMooState::reduce_scatter(at::Tensor output, at::Tensor input) {
  check_dense(output, "output");
  check_dense(input, "input");
  TORCH_CHECK_TYPE(output.scalar_type() == input.scalar_type(),
                   "bucket_moo_ext: output and input must have the same dtype; got ", output.scalar_type(), " and ",
                   input.scalar_type());
  TORCH_CHECK_VALUE(input.numel() == output.numel() * world_size(), "bucket_moo_ext: input must have world_size * ",
                    "output.numel() = ", world_size(), " * ", output.numel(), " elements; got ", input.numel());
  Job job;
  job.operation = Operation::reduce_scatter;
  job.tile_limit = static_cast<std::int64_t>(input.nbytes());
  job.state_key = {call_label("reduce_scatter", input.numel())};
  job.output = std::move(output);
  job.input = std::move(input);
  job.starts_step = true;
  return submit(std::move(job));
}

FuturePtr BucketMooState::submit(Job job) {
  stamp(job);
  if (job.result.isNone()) {
    job.result = job.output;
  }
  const c10::TypePtr type = job.result.isTensor() ? c10::TypePtr(c10::TensorType::get()) : c10::AnyType::get();
  auto future = c10::make_intrusive<c10::ivalue::Future>(type);
  const bool accepted = worker_.submit([this, job = std::move(job), future]() mutable {
    if (!failure_) {
      try {
        run(job);
      } catch (...) {
        failure_ = std::current_exception();
      }
    }
    if (failure_) {
      future->setError(failure_);
    } else {
      future->markCompleted(std::move(job.result));
    }
  });
  TORCH_CHECK(accepted, "bucket_moo_ext: this state was shut down; make a new one");
  return future;
}

void BucketMooState::stamp(Job& job) {
  const at::Tensor& first = job.operation == Operation::reduce_scatter ? job.input : job.output;
  const std::lock_guard lock(mutex_);
  step_ += job.starts_step;
  job.step = step_;
  std::memcpy(job.record.objective.data(), objective_.data(), objective_.size());
  job.record.weight = weight_;
  job.record.step = step_;
  // A sparse bucket holds as many elements as its rank has rows: nothing to compare.
  job.record.numel = first.is_sparse() ? 0 : first.numel();
  job.record.dtype = static_cast<std::int32_t>(dtype_of(first.scalar_type(), "a bucket"));
  job.record.operation = static_cast<std::int32_t>(job.operation);
}

void BucketMooState::run(const Job& job) {
  const at::NoGradGuard no_grad;
  if (!configuration_checked_) {
    if (transport_) {
      check_same_configuration(*transport_, configuration_);
    }
    configuration_checked_ = true;
  }
  if (job.starts_step) {
    collective_.begin_step(job.record);
    method_.check(collective_.objectives().k());
    const std::lock_guard lock(mutex_);
    // Buckets that this step does not have any more (DDP rebuilt them) must not linger in the report.
    std::erase_if(records_, [&](const auto& item) { return item.second.step + 1 < job.record.step; });
  }
  if (job.output.is_sparse()) {
    reduce_sparse(job);
  } else {
    reduce_dense(job);
  }
}

void BucketMooState::reduce_dense(const Job& job) {
  const DType dtype = dtype_of(job.output.scalar_type(), "a bucket");
  const RandomKey key{seed_, static_cast<std::uint64_t>(job.step), static_cast<std::uint64_t>(job.index)};
  BucketRecord record;
  record.step = job.step;
  record.index = job.index;
  record.parameters = job.parameters;
  record.dtype = dtype;
  record.objectives = collective_.objectives().names;
  record.numel = (job.operation == Operation::reduce_scatter ? job.input : job.output).numel();
  std::vector<double> state = load_state(job);
  record.result = reduce_with(job, dtype, key, state.empty() ? nullptr : state.data());
  store_state(job, state);
  const std::lock_guard lock(mutex_);
  ++counters_.buckets;
  counters_.nonfinite += record.result.solution.status == Status::nonfinite;
  scratch_bytes_ = collective_.scratch_bytes();
  records_[job.key] = std::move(record);
}

BucketSolution BucketMooState::reduce_with(const Job& job, DType dtype, const RandomKey& key, double* state) {
  void* const output = job.output.mutable_data_ptr();
  const std::int64_t n = job.output.numel();
  if (job.operation == Operation::reduce_scatter) {
    return collective_.reduce_scatter(output, job.input.const_data_ptr(), n, dtype, key, job.tile_limit, state);
  }
  return collective_.all_reduce(output, n, dtype, key, job.tile_limit, state);
}

/// Empty for methods without a memory.
std::vector<double> BucketMooState::load_state(const Job& job) {
  const std::lock_guard lock(mutex_);
  return solver_states_.size(1) == 0 ? std::vector<double>()
                                     : solver_states_.load(job.state_key, collective_.objectives().names);
}

void BucketMooState::store_state(const Job& job, const std::vector<double>& values) {
  if (values.empty()) {
    return;
  }
  const std::lock_guard lock(mutex_);
  solver_states_.store(job.state_key, collective_.objectives().names, values);
}

void BucketMooState::reduce_sparse(const Job& job) {
  TORCH_WARN_ONCE(
      "bucket_moo_ext: a sparse gradient bucket is averaged like plain DDP does; conflicts are resolved in dense "
      "buckets "
      "only (use sparse=False in nn.Embedding to include it)");
  at::Tensor gradient = job.output;
  gradient.div_(world_size());
  if (group_) {
    std::vector<at::Tensor> tensors{gradient};
    group_->allreduce(tensors)->wait();
  }
  const std::lock_guard lock(mutex_);
  ++counters_.buckets;
  ++counters_.sparse;
}

std::vector<BucketRecord> BucketMooState::records() const {
  std::vector<BucketRecord> last;
  {
    const std::lock_guard lock(mutex_);
    std::int64_t newest = 0;
    for (const auto& [key, record] : records_) {
      newest = std::max(newest, record.step);
    }
    for (const auto& [key, record] : records_) {
      if (record.step == newest) {
        last.push_back(record);
      }
    }
  }
  std::sort(last.begin(), last.end(), [](const auto& a, const auto& b) { return a.index < b.index; });
  return last;
}

Counters BucketMooState::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

std::size_t BucketMooState::scratch_bytes() const {
  const std::lock_guard lock(mutex_);
  return scratch_bytes_;
}

std::int64_t BucketMooState::step() const {
  const std::lock_guard lock(mutex_);
  return step_;
}

void BucketMooState::set_step(std::int64_t step) {
  TORCH_CHECK_VALUE(step >= 0, "bucket_moo_ext: step must be >= 0; got ", step);
  const std::lock_guard lock(mutex_);
  step_ = step;
}

std::vector<SavedSolverState> BucketMooState::solver_states() const {
  const std::lock_guard lock(mutex_);
  return solver_states_.save();
}

void BucketMooState::set_solver_states(const std::vector<SavedSolverState>& saved) {
  const std::lock_guard lock(mutex_);
  solver_states_.restore(saved);
}

void BucketMooState::shutdown() {
  if (transport_) {
    transport_->abort();
  }
  worker_.stop();
}

}  // namespace bucket_moo
