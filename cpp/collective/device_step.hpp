// What the ranks of a group know of a step on the device: who stands for which objective, and what is wrong with it.
#pragma once

#include <c10/core/Device.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "bucket_moo/objective_table.hpp"
#include "collective/device_exchange.hpp"
#include "collective/device_memory.hpp"
#include "collective/failure_notice.hpp"
#include "collective/memory_layout.hpp"
#include "collective/objectives.hpp"
#include "solve.cuh"
#include "torch_types/device.hpp"

namespace bucket_moo {

/// Names that methods with a memory can tell apart over the life of a state.
inline constexpr int kMaxRememberedNames = 256;

/// What steps are held to, and what is kept of them.
struct StepRules {
  int expected_objectives = 0;    ///< the K that the method's options are for; 0: any
  bool is_sketched = false;       ///< there is a sketch, whose exchange takes room for the largest K there may be
  bool keeps_objectives = false;  ///< every step must have the objectives of the first one
  bool remembers_names = false;   ///< objectives have numbers that hold for good, for methods with a memory
};

/// The step that a group of ranks is in, as its device knows it: the host tells each device who its rank stands for,
/// the devices exchange that, and every later kernel reads K and the members of each objective from the table that
/// comes of it. Everything is enqueued on the current stream of the calling thread, which is always the same one.
///
/// The objectives of the first step are read on the host, which waits for the device once. What is wrong with a later
/// step (other calls, too many objectives) is found on the device, which turns the step's results into NaN; it is
/// raised by a later call of check_past_steps().
///
/// Calls are collective: every rank, same order, one thread at a time.
class DeviceStep {
 public:
  /// `exchange`: must outlive the step.
  DeviceStep(const DeviceExchange& exchange, c10::Device device, StepRules rules);
  DeviceStep(const DeviceStep&) = delete;
  DeviceStep& operator=(const DeviceStep&) = delete;

  /// The objectives of the first step, before it begins. Raises as read_objectives() does. Waits for the device.
  Objectives agree_on_objectives(const StepRecord& own) const;

  /// To be called once, before the first step, with its K. It decides how large K may become: 64, but 16 where the
  /// first is at most 8; with sketches the next power of two, and 4 at least. Never more than `limit`.
  void bound_objectives(int first_k, int limit);

  /// The largest K there may be; 0 before bound_objectives().
  int k_bound() const { return k_bound_; }
  /// The K of the first step, for which kernels are made.
  int first_k() const { return first_k_; }

  /// Enqueues the exchange of records that starts a step. The device counts the steps, on from continue_from(); the
  /// step of `own` is not used.
  void begin(const StepRecord& own);
  /// The next step is `step` + 1. Waits for the device.
  void continue_from(std::int64_t step);

  /// The next step may have other objectives than those before, whatever the rules. Waits for the device.
  void forget_objectives();

  /// Raises AgreedError if a step before the last one begun had an error and the host knows of it. Does not wait. To be
  /// called before a step begins.
  ///
  /// All devices find the same error in the same step, but their hosts hear of it when their devices come to it, and a
  /// rank that raises leaves the others waiting in NCCL if they do not. So the newest step's error, which one host may
  /// know and another not yet, is kept for a step: where no host is two steps ahead of its device, as in loops that
  /// read their loss, all ranks raise at the start of the same step. One that is further ahead raises at a later step,
  /// unless its program waits for the device first. To agree in every case hosts would have to wait.
  void check_past_steps() const;
  /// The same for the header of a result.
  void check(const StepHeader& header) const;

  // For kernels: all pointers on the device.

  const ObjectiveTable& table() const { return memory_.table; }
  cuda::DeviceCounters* counters() const { return memory_.counters; }
  /// For cuda::launch_gramian(), zero when a step begins.
  unsigned* gramian_tickets() const { return memory_.gramian_tickets; }
  /// Without names unless the rules say that they are remembered.
  const ObjectiveRegistry& registry() const { return registry_; }

  // What follows waits for the current stream.

  cuda::DeviceCounters read_counters() const;
  /// Names of the newest step's objectives, of which there are k.
  std::vector<std::string> objective_names(int k) const;
  /// Ranks that each of them has.
  std::vector<std::int64_t> objective_rows(int k) const;
  /// The names of the registry, by number. At most kMaxRememberedNames.
  std::vector<std::string> remembered_names() const;
  void set_remembered_names(const std::vector<std::string>& names);

  /// A graph uses what is held here, and may go on to do so.
  void keep_memory() { first_failure_.keep(); }

  /// Bytes of device memory held.
  std::size_t bytes() const { return step_buffer_.capacity() + registry_buffer_.capacity(); }

 private:
  /// What step_buffer_ holds.
  struct Memory {
    StepRecord* records;  // [W], side by side: they are gathered in place
    ObjectiveTable table;
    cuda::DeviceCounters* counters;
    StepHeader* failed;  // of the first step that had an error
    FirstObjectives first;
    unsigned* gramian_tickets;
  };

  static Memory lay_out(MemoryLayout& layout, int world);
  static ObjectiveRegistry lay_out_registry(MemoryLayout& layout, int world);
  cudaStream_t stream() const { return current_stream(device_); }

  const DeviceExchange& exchange_;
  const c10::Device device_;
  const StepRules rules_;
  int first_k_ = 0;
  int k_bound_ = 0;
  std::int64_t begun_ = 0;  // steps; ranks count alike, whatever numbers their steps have
  DeviceBuffer step_buffer_;
  DeviceBuffer registry_buffer_;
  Memory memory_ = {};
  ObjectiveRegistry registry_ = {};
  FailureNotice first_failure_;
};

}  // namespace bucket_moo
