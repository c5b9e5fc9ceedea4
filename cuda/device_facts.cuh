// What the CUDA runtime says of devices and of kernels on them, asked once: the questions of a launch take the host
// longer than the launch.
#ifndef BUCKET_MOO_CUDA_DEVICE_FACTS_CUH
#define BUCKET_MOO_CUDA_DEVICE_FACTS_CUH

#include <cuda_runtime_api.h>

#include <compare>
#include <cstddef>
#include <map>
#include <mutex>

namespace bucket_moo::cuda {

/// Answers by question and device. May be used by several threads at a time.
class DeviceFacts {
 public:
  struct Question {
    int device;
    const void* kernel = nullptr;  ///< nullptr: about the device itself
    int threads = 0;               ///< of a block; 0: what is asked has nothing to do with them
    std::size_t shared = 0;        ///< bytes of shared memory of a block
    auto operator<=>(const Question&) const = default;
  };

  /// Those of the process; never destroyed, for kernels may be launched while it ends.
  static DeviceFacts& instance() {
    static DeviceFacts* const facts = new DeviceFacts;
    return *facts;
  }

  /// \param ask  ask(&answer) asks the runtime; what fails is not kept
  template <class Ask>
  cudaError_t find(const Question& question, int* answer, Ask ask) {
    const std::lock_guard lock(mutex_);
    const auto known = answers_.find(question);
    if (known != answers_.end()) {
      *answer = known->second;
      return cudaSuccess;
    }
    const cudaError_t status = ask(answer);
    if (status == cudaSuccess) answers_.emplace(question, *answer);
    return status;
  }

  /// Of a setting: raise() sets it to `value`, unless it is as high already.
  template <class Raise>
  cudaError_t raise(const Question& question, int value, Raise raise) {
    const std::lock_guard lock(mutex_);
    const auto known = answers_.find(question);
    if (known != answers_.end() && known->second >= value) return cudaSuccess;
    const cudaError_t status = raise();
    if (status == cudaSuccess) answers_.insert_or_assign(question, value);
    return status;
  }

  /// For emulated devices, which may change.
  void forget() {
    const std::lock_guard lock(mutex_);
    answers_.clear();
  }

 private:
  std::mutex mutex_;
  std::map<Question, int> answers_;
};

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_DEVICE_FACTS_CUH
