#include "hooks/bucket_moo_state.hpp"

#include <ATen/Functions.h>
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
  TORCH_CHECK_VALUE(!tensor.is_neg(), "bucket_moo_ext: ", what, " must not be a negative view; use resolve_neg()");
  dtype_of(tensor.scalar_type(), what);
}

void check_bucket(const at::Tensor& buffer) {
  if (buffer.is_sparse()) {
    TORCH_CHECK_VALUE(buffer.device().is_cpu(), "bucket_moo_ext: a DDP bucket must be on the CPU; got device ",
                      buffer.device());
    dtype_of(buffer.scalar_type(), "a DDP bucket");
  } else {
    check_dense(buffer, "a DDP bucket");
  }
}

void check_reduce_scatter(const at::Tensor& output, const at::Tensor& input, int rank, int world) {
  check_dense(output, "output");
  check_dense(input, "input");
  TORCH_CHECK_TYPE(output.scalar_type() == input.scalar_type(),
                   "bucket_moo_ext: output and input must have the same dtype; got ", output.scalar_type(), " and ",
                   input.scalar_type());
  TORCH_CHECK_VALUE(input.numel() == output.numel() * world, "bucket_moo_ext: input must have world_size * ",
                    "output.numel() = ", world, " * ", output.numel(), " elements; got ", input.numel());
  const auto* const out = static_cast<const std::byte*>(output.const_data_ptr());
  const auto* const in = static_cast<const std::byte*>(input.const_data_ptr());
  const bool apart = out + output.nbytes() <= in || in + input.nbytes() <= out;
  const bool own_shard = out == in + static_cast<std::size_t>(rank) * output.nbytes();
  TORCH_CHECK_VALUE(apart || own_shard,
                    "bucket_moo_ext: output must be apart from input or exactly its own rank's shard of it");
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
    : transport_(group ? std::make_shared<PointToPointTransport>(std::move(group)) : nullptr),
      method_(std::move(method)),
      seed_(seed),
      bucket_cap_(bucket_cap),
      configuration_(std::move(configuration)),
      collective_(transport_, method_.method()),
      objective_(std::to_string(collective_.rank())),
      solver_states_(method_.method()) {}

BucketMooState::~BucketMooState() { worker_.stop(); }

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
    parameter_names_.insert_or_assign(parameter.unsafeGetTensorImpl(),
                                      NamedParameter{WeakTensorImpl(parameter.getIntrusivePtr()), name});
  }
}

FuturePtr BucketMooState::run_bucket(c10d::GradBucket& bucket, c10::IValue result) {
  Job job;
  job.operation = Operation::ddp_bucket;
  job.output = bucket.getBufferRef();
  job.result = std::move(result);
  job.index = static_cast<std::int64_t>(bucket.getIndex());
  job.starts_step = job.index == 0;
  try {
    check_bucket(job.output);
  } catch (...) {
    if (job.starts_step) {
      refuse();
    }
    throw;
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
      const bool named = found != parameter_names_.end() && !found->second.identity.expired();
      job.parameters.push_back(named ? found->second.name : shape_of(parameter));
      // Ranks meet their parameters in the same order, and so does a later run.
      const std::string label = named ? found->second.name : nth_label(state_labels_.size());
      job.state_key.push_back({state_labels_.emplace(identity, label).first->second, parameter.numel()});
    }
  }
  return submit(std::move(job));
}

FuturePtr BucketMooState::all_reduce(at::Tensor tensor, c10::IValue result) {
  try {
    check_dense(tensor, "tensor");
  } catch (...) {
    refuse();
    throw;
  }
  Job job;
  job.operation = Operation::all_reduce;
  job.tile_limit = static_cast<std::int64_t>(tensor.nbytes());
  job.state_key = {call_label("all_reduce", tensor.numel())};
  job.output = std::move(tensor);
  job.result = std::move(result);
  job.starts_step = true;
  return submit(std::move(job));
}

FuturePtr BucketMooState::reduce_scatter(at::Tensor output, at::Tensor input, c10::IValue result) {
  try {
    check_reduce_scatter(output, input, rank(), world_size());
  } catch (...) {
    refuse();
    throw;
  }
  Job job;
  job.operation = Operation::reduce_scatter;
  job.tile_limit = static_cast<std::int64_t>(input.nbytes());
  job.state_key = {call_label("reduce_scatter", input.numel())};
  job.output = std::move(output);
  job.input = std::move(input);
  job.result = std::move(result);
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
  // The job keeps the state alive while it runs, and lets go of it before its Future is done, so that whoever waits for
  // the Future and then drops the state ends the worker, and not the worker itself.
  const bool accepted = worker_.submit([self = shared_from_this(), job = std::move(job), future]() mutable {
    self->run_step_of(job);
    const std::exception_ptr failure = self->failure_ ? self->failure_ : self->step_failure_;
    self.reset();
    // While `result` or the waiting caller still holds them: to drop the last C++ reference to a tensor that Python knows
    // takes the GIL.
    job.output.reset();
    job.input.reset();
    if (failure) {
      future->setError(failure);
    } else {
      future->markCompleted(std::move(job.result));
    }
  });
  TORCH_CHECK(accepted, "bucket_moo_ext: this state was shut down; make a new one");
  return future;
}

/// Tells the other ranks, which make a call of their own, that this one refused its arguments: they raise too instead of
/// waiting for it.
void BucketMooState::refuse() {
  Job job;
  job.operation = Operation::invalid;
  job.starts_step = true;
  submit(std::move(job));
}

void BucketMooState::run_step_of(const Job& job) {
  if (failure_) {
    return;
  }
  if (job.starts_step) {
    step_failure_ = nullptr;
  }
  if (step_failure_) {
    return;
  }
  try {
    run(job);
  } catch (const c10::ValueError&) {  // raised alike on every rank, before the step's first bucket
    step_failure_ = std::current_exception();
  } catch (...) {
    failure_ = std::current_exception();
  }
}

void BucketMooState::stamp(Job& job) {
  const at::Tensor& first = job.operation == Operation::reduce_scatter ? job.input : job.output;
  const bool dense = job.operation != Operation::invalid && !first.is_sparse();
  const std::lock_guard lock(mutex_);
  step_ += job.starts_step;
  job.step = step_;
  job.record.objective = make_objective_name(objective_);
  job.record.weight = weight_;
  job.record.step = step_;
  // A sparse bucket holds as many elements as its rank has rows: nothing to compare.
  job.record.numel = dense ? first.numel() : 0;
  job.record.dtype = static_cast<std::int32_t>(dense ? dtype_of(first.scalar_type(), "a bucket") : DType::float32);
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

/// Concatenates [..., m_r] tensors of all ranks along their last dimension, in rank order.
at::Tensor BucketMooState::gather_columns(const at::Tensor& own) {
  const auto world = static_cast<std::size_t>(world_size());
  const auto rank_index = static_cast<std::size_t>(rank());
  std::vector<std::int64_t> counts(world);
  counts[rank_index] = own.size(-1);
  if (transport_) {
    transport_->all_gather(reinterpret_cast<std::byte*>(counts.data()), sizeof(counts[0]));
  }
  std::vector<std::int64_t> sizes = own.sizes().vec();
  sizes.back() = *std::max_element(counts.begin(), counts.end());
  sizes.insert(sizes.begin(), world_size());
  const at::Tensor blocks = at::zeros(sizes, own.options());
  blocks[rank()].narrow(-1, 0, own.size(-1)).copy_(own);
  if (transport_) {
    transport_->all_gather(static_cast<std::byte*>(blocks.mutable_data_ptr()), blocks.nbytes() / world);
  }
  std::vector<at::Tensor> columns;
  for (std::size_t r = 0; r < world; ++r) {
    columns.push_back(blocks[static_cast<std::int64_t>(r)].narrow(-1, 0, counts[r]));
  }
  return at::cat(columns, -1);
}

void BucketMooState::reduce_sparse(const Job& job) {
  TORCH_WARN_ONCE(
      "bucket_moo_ext: a sparse gradient bucket is averaged like plain DDP does; conflicts are resolved in dense "
      "buckets "
      "only (use sparse=False in nn.Embedding to include it)");
  at::Tensor gradient = job.output;
  const at::Tensor own = gradient.coalesce();
  const at::Tensor indices = gather_columns(own.indices());
  const at::Tensor values = gather_columns(own.values().movedim(0, -1).contiguous()).movedim(-1, 0);
  gradient.copy_(at::sparse_coo_tensor(indices, values / world_size(), gradient.sizes()).coalesce());
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
  records_.clear();  // those of steps that have not been, seen from here
}

void BucketMooState::check_may_wait() const {
  TORCH_CHECK(!worker_.is_this_thread(),
              "bucket_moo_ext: a blocking call from a callback of this state's own Future would wait for itself; use "
              "async_op=True there");
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
