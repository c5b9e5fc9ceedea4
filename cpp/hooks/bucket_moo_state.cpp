#include "hooks/bucket_moo_state.hpp"

#include <c10/util/Exception.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <sstream>

#include "collective/agreed_error.hpp"
#include "torch_types/dtype.hpp"

namespace bucket_moo {
namespace {

std::string shape_of(const at::Tensor& parameter) {
  std::ostringstream text;
  text << "parameter" << parameter.sizes();
  return text.str();
}

/// By what solver states know the elements of a call that has no parameters.
BucketParameter call_label(const char* operation, std::int64_t numel) {
  std::ostringstream text;
  text << operation << "[" << numel << "]";
  return {text.str(), numel};
}

std::string name_of(c10::Device device) { return device.is_cpu() ? "the CPU" : device.str(); }

/// Not so: subclasses that dispatch in Python (DTensor), those inside torch.func's transformations, zero tensors, and
/// tensors whose storage was freed. `tensor`: contiguous.
bool holds_its_elements(const at::Tensor& tensor) {
  if (tensor.key_set().has(c10::DispatchKey::Python) || !tensor.has_storage()) {
    return false;
  }
  const auto end = static_cast<std::size_t>(tensor.storage_offset()) * tensor.itemsize() + tensor.nbytes();
  return tensor.numel() == 0 || (tensor.const_data_ptr() != nullptr && tensor.storage().nbytes() >= end);
}

std::string nth_label(std::size_t n) {
  std::ostringstream text;
  text << "#" << n;
  return text.str();
}

}  // namespace

BucketMooState::BucketMooState(StateOptions options, c10::Device device, int rank)
    : options_(std::move(options)), device_(device), objective_(std::to_string(rank)) {}

void BucketMooState::check_at_home() const {
  TORCH_CHECK(is_at_home(), "bucket_moo_ext: this state was made in process ", home_.pid(), " and reduces there only; ",
              "its threads and connections did not come along when process ", getpid(),
              " was forked. A process that is to reduce needs a process group of its own: start it with "
              "multiprocessing's 'spawn' or 'forkserver'");
}

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

void BucketMooState::check_dense(const at::Tensor& tensor, const char* what) const {
  TORCH_CHECK_VALUE(tensor.defined(), "bucket_moo_ext: ", what, " must be a tensor, got an undefined one");
  TORCH_CHECK_VALUE(tensor.device() == device_, "bucket_moo_ext: ", what, " must be on ", name_of(device_),
                    ", where this state reduces; got device ", tensor.device());
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided && !tensor.is_nested(), "bucket_moo_ext: ", what,
                    " must be dense; got ",
                    tensor.is_nested() ? "a nested tensor" : c10::str("layout ", tensor.layout()));
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "bucket_moo_ext: ", what, " must be contiguous; got sizes ", tensor.sizes(),
                    " with strides ", tensor.strides());
  TORCH_CHECK_VALUE(!tensor.is_neg(), "bucket_moo_ext: ", what, " must not be a negative view; use resolve_neg()");
  dtype_of(tensor.scalar_type(), what);
  TORCH_CHECK_VALUE(holds_its_elements(tensor), "bucket_moo_ext: ", what,
                    " must hold its elements itself; got a tensor ",
                    "that keeps them elsewhere (for a DTensor give its to_local()) or has none");
}

void BucketMooState::check_bucket(const at::Tensor& buffer) const {
  if (buffer.is_sparse()) {
    TORCH_CHECK_VALUE(buffer.device() == device_, "bucket_moo_ext: a DDP bucket must be on ", name_of(device_),
                      "; got device ", buffer.device());
    dtype_of(buffer.scalar_type(), "a DDP bucket");
  } else {
    check_dense(buffer, "a DDP bucket");
  }
}

void BucketMooState::check_reduce_scatter(const at::Tensor& output, const at::Tensor& input) const {
  check_dense(output, "output");
  check_dense(input, "input");
  TORCH_CHECK_TYPE(output.scalar_type() == input.scalar_type(),
                   "bucket_moo_ext: output and input must have the same dtype; got ", output.scalar_type(), " and ",
                   input.scalar_type());
  TORCH_CHECK_VALUE(input.numel() == output.numel() * world_size(), "bucket_moo_ext: input must have world_size * ",
                    "output.numel() = ", world_size(), " * ", output.numel(), " elements; got ", input.numel());
  const auto* const out = static_cast<const std::byte*>(output.const_data_ptr());
  const auto* const in = static_cast<const std::byte*>(input.const_data_ptr());
  const bool apart = out + output.nbytes() <= in || in + input.nbytes() <= out;
  const bool own_shard = out == in + static_cast<std::size_t>(rank()) * output.nbytes();
  TORCH_CHECK_VALUE(apart || own_shard,
                    "bucket_moo_ext: output must be apart from input or exactly its own rank's shard of it");
}

/// Runs a check of a call's arguments; what it throws goes to the caller, and the other ranks hear of it.
template <class Check>
void BucketMooState::check_or_refuse(bool starts_step, Check check) {
  try {
    check();
  } catch (...) {
    if (starts_step) {
      refuse();
    }
    throw;
  }
}

/// Gradients that are kept are no error: on other ranks they may not be, and would wait for this one.
void BucketMooState::check_kept_gradients(const Call& call, const std::vector<at::Tensor>& parameters) {
  // The mean of (reduced before + new) is (reduced before + mean of the new).
  const bool is_mean = method().method().id == MethodId::mean;
  if (is_mean || call.output.is_sparse()) {
    return;
  }
  if (const std::optional<std::size_t> found = kept_gradients_.find(call.output, parameters, call.starts_step)) {
    TORCH_WARN(
        "bucket_moo_ext: gradients were not zeroed between two backward passes that were reduced (.grad of '",
        call.parameters.at(*found), "' was not zero when the second began). The weights are solved from what was ",
        "reduced before plus the new gradients, and objectives may conflict unseen. Call zero_grad() between two ",
        "backward passes, or run all but the last one of an accumulation under no_sync(). This is said once");
  }
}

FuturePtr BucketMooState::run_bucket(c10d::GradBucket& bucket, c10::IValue result) {
  check_at_home();
  Call call;
  call.operation = Operation::ddp_bucket;
  call.output = bucket.getBufferRef();
  call.result = std::move(result);
  call.index = static_cast<std::int64_t>(bucket.getIndex());
  call.starts_step = call.index == 0;
  call.ends_step = bucket.isLast();
  check_or_refuse(call.starts_step, [&] { check_bucket(call.output); });
  const std::vector<at::Tensor> parameters = bucket.getParameters();
  // DDP closes a bucket once it has reached the cap, hence a regular one holds at most this.
  call.tile_limit = options_.bucket_cap;
  for (const at::Tensor& parameter : parameters) {
    call.tile_limit = std::max(call.tile_limit, options_.bucket_cap + static_cast<std::int64_t>(parameter.nbytes()));
  }
  {
    const std::lock_guard lock(mutex_);
    for (const at::Tensor& parameter : parameters) {
      const void* const identity = parameter.unsafeGetTensorImpl();
      const auto found = parameter_names_.find(identity);
      call.key.push_back(identity);
      const bool named = found != parameter_names_.end() && !found->second.identity.expired();
      call.parameters.push_back(named ? found->second.name : shape_of(parameter));
      // Ranks meet their parameters in the same order, and so does a later run.
      const std::string label = named ? found->second.name : nth_label(state_labels_.size());
      call.state_key.push_back({state_labels_.emplace(identity, label).first->second, parameter.numel()});
    }
  }
  check_kept_gradients(call, parameters);
  return submit(std::move(call));
}

FuturePtr BucketMooState::all_reduce(at::Tensor tensor, c10::IValue result) {
  check_at_home();
  check_or_refuse(true, [&] { check_dense(tensor, "tensor"); });
  Call call;
  call.operation = Operation::all_reduce;
  call.tile_limit = static_cast<std::int64_t>(tensor.nbytes());
  call.state_key = {call_label("all_reduce", tensor.numel())};
  call.output = std::move(tensor);
  call.result = std::move(result);
  call.starts_step = true;
  call.ends_step = true;
  return submit(std::move(call));
}

FuturePtr BucketMooState::reduce_scatter(at::Tensor output, at::Tensor input, c10::IValue result) {
  check_at_home();
  check_or_refuse(true, [&] { check_reduce_scatter(output, input); });
  Call call;
  call.operation = Operation::reduce_scatter;
  call.tile_limit = static_cast<std::int64_t>(input.nbytes());
  call.state_key = {call_label("reduce_scatter", input.numel())};
  call.output = std::move(output);
  call.input = std::move(input);
  call.result = std::move(result);
  call.starts_step = true;
  call.ends_step = true;
  return submit(std::move(call));
}

void BucketMooState::stamp(Call& call) {
  const bool dense = call.operation != Operation::invalid && !call.bucket().is_sparse();
  const std::lock_guard lock(mutex_);
  step_ += call.starts_step;
  call.step = step_;
  call.record.objective = make_objective_name(objective_);
  call.record.weight = weight_;
  call.record.step = step_;
  // A sparse bucket holds as many elements as its rank has rows: nothing to compare.
  call.record.numel = dense ? call.bucket().numel() : 0;
  call.record.dtype =
      static_cast<std::int32_t>(dense ? dtype_of(call.bucket().scalar_type(), "a bucket") : DType::float32);
  call.record.operation = static_cast<std::int32_t>(call.operation);
}

void BucketMooState::check_method_fits(int k) const {
  if (std::string wrong = method().mismatch(k); !wrong.empty()) {
    throw AgreedError(std::move(wrong));
  }
}

std::int64_t BucketMooState::step() const {
  const std::lock_guard lock(mutex_);
  return step_;
}

void BucketMooState::set_step(std::int64_t step) {
  TORCH_CHECK_VALUE(step >= 0, "bucket_moo_ext: step must be >= 0; got ", step);
  {
    const std::lock_guard lock(mutex_);
    step_ = step;
  }
  moved_to(step);
}

}  // namespace bucket_moo
