#include "c10d_collective/device_step.hpp"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "bucket_moo/hash.hpp"
#include "bucket_moo/limits.hpp"
#include "collective/agreed_error.hpp"
#include "collective/grouped_records.hpp"
#include "collective/memory_layout.hpp"
#include "gramian.cuh"
#include "groups.cuh"
#include "nvtx_range.cuh"
#include "passes.cuh"
#include "step.cuh"

namespace bucket_moo {
namespace {

/// Up to this many objectives in the first step, room for kRoom is enough.
constexpr int kFew = 8;
constexpr int kRoom = 16;

/// A line whose newest step is so many steps ago is forgotten: not before its records are, see BucketBook.
constexpr std::int64_t kIdleSteps = 1 << 13;

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

DeviceStep::DeviceStep(const DeviceExchange& exchange, c10::Device device, StepRules rules, RankGrid grid,
                       const DeviceExchange& pieces)
    : exchange_(exchange),
      device_(device),
      rules_(rules),
      grid_(std::move(grid)),
      rows_(grid_.has_levels() ? grid_.across() : exchange.size()),
      ranks_(grid_.has_levels() ? at::tensor(grid_.ranks, at::kInt).to(device) : at::Tensor()),
      buffer_(device),
      registry_buffer_(device),
      first_failure_(device) {
  if (pieces.size() > 1) {
    pieces_.emplace(pieces.rank(), pieces.size(),
                    [&pieces](std::span<std::byte> blocks) { pieces.all_gather_host(blocks); });
  }
  MemoryLayout needed(nullptr);
  lay_out(needed);
  MemoryLayout layout(buffer_.reserve(needed.used()));
  memory_ = lay_out(layout);
  if (rules_.remembers_names) {
    MemoryLayout needed_by_registry(nullptr);
    lay_out_registry(needed_by_registry);
    MemoryLayout registry_layout(registry_buffer_.reserve(needed_by_registry.used()));
    registry_ = lay_out_registry(registry_layout);
  }
}

DeviceStep::Memory DeviceStep::lay_out(MemoryLayout& layout) {
  Memory memory = {};
  memory.counters = layout.take<cuda::DeviceCounters>(1);
  memory.failed = layout.take<StepHeader>(1);
  memory.first.names = layout.take<ObjectiveName>(kMaxObjectives);
  memory.first.count = layout.take<int>(1);
  memory.gramian_tickets = layout.take<unsigned>(cuda::kGramianTickets);
  return memory;
}

ObjectiveTable DeviceStep::lay_out_table(MemoryLayout& layout, std::size_t rows) {
  ObjectiveTable table = {};
  table.header = layout.take<StepHeader>(1);
  table.leader = layout.take<int>(rows);
  table.objective = layout.take<int>(rows);
  table.share = layout.take<double>(rows);
  table.begin = layout.take<int>(rows + 1);
  table.member = layout.take<int>(rows);
  return table;
}

DeviceStep::OnePass DeviceStep::lay_out_one_pass(MemoryLayout& layout) const {
  const auto count = static_cast<std::size_t>(rows_);
  OnePass one_pass = {};
  one_pass.records = layout.take<StepRecord>(static_cast<std::size_t>(exchange_.size()));
  if (grid_.has_levels()) {
    const auto inside = static_cast<std::size_t>(grid_.inside);
    one_pass.grouped.group = layout.take<StepRecord>(count);
    one_pass.grouped.member = layout.take<StepRecord>(inside);
    one_pass.grouped.found = layout.take<StepHeader>(1);
    for (ObjectiveTable& table : one_pass.inside) {
      table = lay_out_table(layout, inside);
    }
  }
  one_pass.table = lay_out_table(layout, count);
  one_pass.slot = layout.take<int>(count);
  return one_pass;
}

DeviceStep::Passes DeviceStep::lay_out_passes(MemoryLayout& layout) const {
  const auto count = static_cast<std::size_t>(rows_);
  Passes passes = {};
  passes.sums.header = layout.take<StepHeader>(1);
  passes.sums.record = layout.take<StepRecord>(kMaxObjectives);
  passes.sums.unit = layout.take<double>(kMaxObjectives);
  passes.sums.total = layout.take<double>(kMaxObjectives);
  passes.sums.rows = layout.take<std::int32_t>(kMaxObjectives);
  passes.sums.told = layout.take<double>(kMaxObjectives);
  for (PassTable& pass : passes.pass) {
    pass.objective = layout.take<int>(count);
    pass.coefficient = layout.take<double>(count);
    pass.unit = layout.take<double>(kMaxObjectives);
  }
  passes.table = lay_out_table(layout, kMaxObjectives);
  passes.slot = layout.take<int>(kMaxObjectives);
  passes.decay = layout.take<double>(kMaxObjectives);
  passes.share = layout.take<PassShare>(1);
  return passes;
}

ObjectiveRegistry DeviceStep::lay_out_registry(MemoryLayout& layout) {
  ObjectiveRegistry registry = {};
  registry.names = layout.take<ObjectiveName>(kMaxRememberedNames);
  registry.count = layout.take<int>(1);
  registry.capacity = kMaxRememberedNames;
  return registry;
}

ObjectiveRegistry DeviceStep::registry_of(int* slot) const {
  ObjectiveRegistry registry = registry_;
  registry.slot = slot;
  return registry;
}

DeviceStep::Line& DeviceStep::open(std::uint64_t line) {
  Line& opened = lines_.try_emplace(line, device_).first->second;
  if (opened.one_pass.records == nullptr) {
    forget_idle_lines();
    MemoryLayout needed(nullptr);
    lay_out_one_pass(needed);
    MemoryLayout layout(opened.one_pass_buffer.reserve(needed.used()));
    opened.one_pass = lay_out_one_pass(layout);
  }
  selected_ = &opened;
  return opened;
}

/// So that lines of direct calls that do not come again do not pile up.
void DeviceStep::forget_idle_lines() {
  if (!keeps_lines_) {
    std::erase_if(lines_, [this](const auto& named) {
      const Line& line = named.second;
      return line.begun > 0 && !line.is_open && line.begun < begun_ - kIdleSteps;
    });
  }
}

std::vector<StepRecord> DeviceStep::gather_on_hosts(const StepRecord& own) const {
  std::vector<StepRecord> records(static_cast<std::size_t>(exchange_.size()));
  records[static_cast<std::size_t>(exchange_.rank())] = own;
  exchange_.all_gather_host(at::from_blob(records.data(),
                                          {static_cast<std::int64_t>(records.size() * sizeof(StepRecord))},
                                          at::TensorOptions().dtype(at::kByte)));
  return records;
}

void DeviceStep::agree_with_pieces(const std::function<std::uint64_t()>& part) {
  if (pieces_) {
    pieces_->agree(part);
  } else {
    part();
  }
}

Objectives DeviceStep::agree_on_objectives(const StepRecord& own) const {
  const std::vector<StepRecord> records = gather_on_hosts(own);
  Objectives objectives = read_objectives(records);
  if (rules_.one_objective) {
    check_one_objective(records);
  }
  if (grid_.has_levels()) {
    objectives = read_objectives(grouped_records(records, grid_, exchange_.rank()).groups);
  }
  return objectives;
}

void DeviceStep::bound_objectives(int first_k, int limit) {
  first_k_ = first_k;
  solve_limit_ = limit;
  const int room = first_k <= kFew ? kRoom : kMaxObjectives;
  const int sketches = std::max(kLeastSketches, static_cast<int>(std::bit_ceil(static_cast<unsigned>(first_k))));
  k_bound_ = std::min({rules_.is_sketched ? sketches : room, rows_, limit});
}

cuda::FailureReport DeviceStep::failure_report() const {
  return {.first = memory_.failed, .told = first_failure_.on_device(), .begun = begun_};
}

/// Of the record that is written already.
void DeviceStep::exchange_records(Line& line, int pass) {
  exchange_.all_gather(line.one_pass_buffer.tensor(static_cast<std::size_t>(exchange_.size()) * sizeof(StepRecord)));
  if (grid_.has_levels()) {
    const OnePass& one = line.one_pass;
    check_cuda(cuda::launch_group_records(one.records, {ranks_.const_data_ptr<int>(), grid_.across(), grid_.inside},
                                          grid_.across_of(exchange_.rank()), rules_.one_objective, one.grouped,
                                          one.inside[pass % 2], stream()),
               "enqueueing the records of groups");
  }
}

void DeviceStep::begin(std::uint64_t line, const StepRecord& own) {
  const cuda::NvtxRange range("bucket_moo step");
  Line& begun = open(line);
  begun.has_passes = false;
  begun.is_open = false;
  begun.begun = ++begun_;
  const OnePass& one = begun.one_pass;
  check_cuda(cuda::launch_write_record(own, &memory_.counters->step, one.records + exchange_.rank(), stream()),
             "enqueueing the step's record");
  exchange_records(begun, 0);
  check_cuda(cuda::launch_make_table(one.of_rows(grid_), rows_,
                                     {.objectives = k_bound_, .expected = rules_.expected_objectives}, one.table,
                                     first_objectives(), registry_of(one.slot), memory_.gramian_tickets,
                                     failure_report(), stream(), found(begun)),
             "enqueueing the step's table");
}

void DeviceStep::begin_pass(std::uint64_t line, const StepRecord& own) {
  const cuda::NvtxRange range("bucket_moo pass");
  Line& begun = open(line);
  begun.has_passes = true;
  begun.is_open = own.leaves_open != 0;
  if (begun.passes_buffer.capacity() == 0) {
    MemoryLayout needed(nullptr);
    lay_out_passes(needed);
    MemoryLayout layout(begun.passes_buffer.reserve(needed.used()));
    begun.passes = lay_out_passes(layout);
  }
  StepRecord* const record = begun.one_pass.records + exchange_.rank();
  if (own.pass == 0) {  // counted before it may be refused: the host has counted it too
    begun.begun = ++begun_;
    check_cuda(cuda::launch_write_record(own, &memory_.counters->step, record, stream()), "enqueueing a record");
  } else {
    const std::int64_t* const step = &begun.passes.sums.header->step;
    check_cuda(cuda::launch_write_later_record(own, step, record, stream()), "enqueueing a record");
  }
  begun.has_sums = begun.has_sums && own.pass > 0;
  if (own.pass > 0 && !begun.has_sums) {  // they are an earlier step's
    throw AgreedError("bucket_moo_ext: the first pass of this step was refused; give the step up with discard()");
  }
  make_room(begun, own);
  begun.has_sums = true;
  exchange_records(begun, own.pass);
  const PassRules rules{.limits = {.objectives = begun.limit, .expected = rules_.expected_objectives},
                        .one_objective = rules_.one_objective,
                        .first = first_objectives()};
  check_cuda(cuda::launch_add_pass(begun.one_pass.of_rows(grid_), rows_, rules, begun.passes.sums, pass(own.pass),
                                   memory_.gramian_tickets, failure_report(), stream(), found(begun)),
             "enqueueing the pass's table");
}

/// For the objectives of a pass that is about to begin.
void DeviceStep::make_room(Line& line, const StepRecord& own) {
  if (own.pass == 0) {
    line.names.clear();
  }
  const bool knows_names = rows_ == 1 || rules_.one_objective;
  bool& is_compared = line.is_compared[own.pass > 0 || own.leaves_open != 0];
  if (knows_names) {
    line.names.insert(own.objective.text());
  } else if (!is_compared) {
    agree_with_pieces([&] {
      std::string names;
      for (const std::string& name : agree_on_objectives(own).names) {
        line.names.insert(name);
        names += name + "\n";
      }
      return hash_text(names.c_str());
    });
    is_compared = own.leaves_open == 0;
  }
  const int known = static_cast<int>(line.names.size());
  if (known > solve_limit_) {
    throw AgreedError(c10::str("bucket_moo_ext: at most ", solve_limit_, " objectives are supported in all passes of ",
                               "a step; let several rows share an objective (objective=...)"));
  }
  line.capacity = std::max(line.capacity, known);
  // Ranks that break the rule of one objective know different names, but have had as many passes.
  line.limit = knows_names ? std::max(line.limit, std::min(own.pass + 1, solve_limit_)) : line.capacity;
  if (rules_.keeps_objectives) {  // a step is numbered as the first one was, and has all of its objectives at once
    most_capacity_ = std::max({most_capacity_, line.capacity, first_k_});
    most_limit_ = std::max({most_limit_, line.limit, first_k_});
    line.capacity = most_capacity_;
    line.limit = most_limit_;
  }
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

std::vector<std::string> DeviceStep::objective_names(std::uint64_t line, int k) const {
  const Line& asked = lines_.at(line);
  const auto count = static_cast<std::size_t>(k);
  std::vector<std::string> names;
  if (asked.has_passes) {
    for (const StepRecord& record : read(asked.passes.sums.record, count, stream())) {
      names.emplace_back(record.objective.text());
    }
    return names;
  }
  const std::vector<StepRecord> records =
      read(asked.one_pass.of_rows(grid_), static_cast<std::size_t>(rows_), stream());
  for (const int leader : read(asked.one_pass.table.leader, count, stream())) {
    names.emplace_back(records[static_cast<std::size_t>(leader)].objective.text());
  }
  return names;
}

std::vector<std::int64_t> DeviceStep::objective_rows(std::uint64_t line, int k) const {
  const Line& asked = lines_.at(line);
  std::vector<std::int64_t> rows;
  if (asked.has_passes) {
    for (const std::int32_t of_groups : read(asked.passes.sums.rows, static_cast<std::size_t>(k), stream())) {
      rows.push_back(of_groups * grid_.inside);
    }
    return rows;
  }
  rows.resize(static_cast<std::size_t>(k));
  for (const int objective : read(asked.one_pass.table.objective, static_cast<std::size_t>(rows_), stream())) {
    if (objective < k) {  // else scratch of an error
      rows[static_cast<std::size_t>(objective)] += grid_.inside;
    }
  }
  return rows;
}

std::size_t DeviceStep::bytes() const {
  std::size_t bytes = buffer_.capacity() + registry_buffer_.capacity();
  for (const auto& [name, line] : lines_) {
    bytes += line.one_pass_buffer.capacity() + line.passes_buffer.capacity();
  }
  return bytes;
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
