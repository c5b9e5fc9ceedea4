#include "collective/device_step.hpp"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <bit>

#include "bucket_moo/limits.hpp"
#include "collective/memory_layout.hpp"
#include "gramian.cuh"
#include "nvtx_range.cuh"
#include "step.cuh"

namespace bucket_moo {
namespace {

/// Up to this many objectives in the first step, room for kRoom is enough.
constexpr int kFew = 8;
constexpr int kRoom = 16;

/// With sketches there is room for as many at least.
constexpr int kLeastSketches = 4;

/// Host memory of what the device holds, once the current stream has come so far.
template <class T>
std::vector<T> read(const T* device_memory, std::size_t count, cudaStream_t stream) {
  std::vector<T> host(count);
  check_cuda(cudaMemcpyAsync(host.data(), device_memory, count * sizeof(T), cudaMemcpyDeviceToHost, stream),
             "reading device memory");
  check_cuda(cudaStreamSynchronize(stream), "waiting for the device");
  return host;
}

template <class T>
void write(T* device_memory, const T* host, std::size_t count, cudaStream_t stream) {
  check_cuda(cudaMemcpyAsync(device_memory, host, count * sizeof(T), cudaMemcpyHostToDevice, stream),
             "writing device memory");
  check_cuda(cudaStreamSynchronize(stream), "waiting for the device");
}

}  // namespace

DeviceStep::DeviceStep(const DeviceExchange& exchange, c10::Device device, StepRules rules)
    : exchange_(exchange),
      device_(device),
      rules_(rules),
      step_buffer_(device),
      registry_buffer_(device),
      first_failure_(device) {
  MemoryLayout needed(nullptr);
  lay_out(needed, exchange_.size());
  MemoryLayout layout(step_buffer_.reserve(needed.used()));
  memory_ = lay_out(layout, exchange_.size());
  if (rules_.remembers_names) {
    MemoryLayout needed_by_registry(nullptr);
    lay_out_registry(needed_by_registry, exchange_.size());
    MemoryLayout registry_layout(registry_buffer_.reserve(needed_by_registry.used()));
    registry_ = lay_out_registry(registry_layout, exchange_.size());
  }
}

DeviceStep::Memory DeviceStep::lay_out(MemoryLayout& layout, int world) {
  const auto count = static_cast<std::size_t>(world);
  Memory memory = {};
  memory.records = layout.take<StepRecord>(count);
  memory.table.header = layout.take<StepHeader>(1);
  memory.table.leader = layout.take<int>(count);
  memory.table.objective = layout.take<int>(count);
  memory.table.share = layout.take<double>(count);
  memory.table.begin = layout.take<int>(count + 1);
  memory.table.member = layout.take<int>(count);
  memory.counters = layout.take<cuda::DeviceCounters>(1);
  memory.failed = layout.take<StepHeader>(1);
  memory.first.names = layout.take<ObjectiveName>(kMaxObjectives);
  memory.first.count = layout.take<int>(1);
  memory.gramian_tickets = layout.take<unsigned>(cuda::kGramianTickets);
  return memory;
}

ObjectiveRegistry DeviceStep::lay_out_registry(MemoryLayout& layout, int world) {
  ObjectiveRegistry registry = {};
  registry.names = layout.take<ObjectiveName>(kMaxRememberedNames);
  registry.count = layout.take<int>(1);
  registry.slot = layout.take<int>(static_cast<std::size_t>(world));
  registry.capacity = kMaxRememberedNames;
  return registry;
}

Objectives DeviceStep::agree_on_objectives(const StepRecord& own) const {
  std::vector<StepRecord> records(static_cast<std::size_t>(exchange_.size()));
  records[static_cast<std::size_t>(exchange_.rank())] = own;
  exchange_.all_gather_host(at::from_blob(records.data(),
                                          {static_cast<std::int64_t>(records.size() * sizeof(StepRecord))},
                                          at::TensorOptions().dtype(at::kByte)));
  return read_objectives(records);
}

void DeviceStep::bound_objectives(int first_k, int limit) {
  first_k_ = first_k;
  const int room = first_k <= kFew ? kRoom : kMaxObjectives;
  const int sketches = std::max(kLeastSketches, static_cast<int>(std::bit_ceil(static_cast<unsigned>(first_k))));
  k_bound_ = std::min({rules_.is_sketched ? sketches : room, exchange_.size(), limit});
}

void DeviceStep::begin(const StepRecord& own) {
  const cuda::NvtxRange range("bucket_moo step");
  const int world = exchange_.size();
  ++begun_;
  check_cuda(cuda::launch_write_record(own, &memory_.counters->step, memory_.records + exchange_.rank(), stream()),
             "enqueueing the step's record");
  exchange_.all_gather(step_buffer_.tensor(static_cast<std::size_t>(world) * sizeof(StepRecord)));
  check_cuda(
      cuda::launch_make_table(memory_.records, world, {.objectives = k_bound_, .expected = rules_.expected_objectives},
                              memory_.table, rules_.keeps_objectives ? memory_.first : FirstObjectives{}, registry_,
                              memory_.gramian_tickets, memory_.failed, first_failure_.on_device(), begun_, stream()),
      "enqueueing the step's table");
}

void DeviceStep::continue_from(std::int64_t step) { write(&memory_.counters->step, &step, 1, stream()); }

void DeviceStep::forget_objectives() {
  const int none = 0;
  write(memory_.first.count, &none, 1, stream());
}

void DeviceStep::check_past_steps() const {
  const cuda::StepNotice failure = first_failure_.look();
  if (failure.begun < begun_) {
    check(failure.header);
  }
}

void DeviceStep::check(const StepHeader& header) const { check_step(header, {}, k_bound_); }

cuda::DeviceCounters DeviceStep::read_counters() const { return read(memory_.counters, 1, stream())[0]; }

std::vector<std::string> DeviceStep::objective_names(int k) const {
  const auto world = static_cast<std::size_t>(exchange_.size());
  const std::vector<StepRecord> records = read(memory_.records, world, stream());
  std::vector<std::string> names;
  for (const int leader : read(memory_.table.leader, static_cast<std::size_t>(k), stream())) {
    names.emplace_back(records[static_cast<std::size_t>(leader)].objective.text());
  }
  return names;
}

std::vector<std::int64_t> DeviceStep::objective_rows(int k) const {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(k));
  // The table is the newest step's, which may have others than the result that k is from, or be scratch of an error.
  for (const int objective : read(memory_.table.objective, static_cast<std::size_t>(exchange_.size()), stream())) {
    if (objective < k) {
      ++rows[static_cast<std::size_t>(objective)];
    }
  }
  return rows;
}

std::vector<std::string> DeviceStep::remembered_names() const {
  const int count = read(registry_.count, 1, stream())[0];
  std::vector<std::string> names;
  for (const ObjectiveName& name : read(registry_.names, static_cast<std::size_t>(count), stream())) {
    names.emplace_back(name.text());
  }
  return names;
}

void DeviceStep::set_remembered_names(const std::vector<std::string>& names) {
  TORCH_CHECK_VALUE(names.size() <= static_cast<std::size_t>(kMaxRememberedNames), "bucket_moo_ext: on a GPU at most ",
                    kMaxRememberedNames, " objective names can be remembered; got ", names.size());
  std::vector<ObjectiveName> padded;
  for (const std::string& name : names) {
    padded.push_back(make_objective_name(name));
  }
  const auto count = static_cast<int>(names.size());
  write(registry_.names, padded.data(), padded.size(), stream());
  write(registry_.count, &count, 1, stream());
}

}  // namespace bucket_moo
