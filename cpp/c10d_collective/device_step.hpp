// What the ranks of a group know of a step on the device: who stands for which objective, and what is wrong with it.
#pragma once

#include <c10/core/Device.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "bucket_moo/objective_table.hpp"
#include "bucket_moo/pass_table.hpp"
#include "bucket_moo/rank_groups.hpp"
#include "c10d_collective/device_exchange.hpp"
#include "c10d_collective/device_memory.hpp"
#include "c10d_collective/failure_notice.hpp"
#include "collective/memory_layout.hpp"
#include "collective/model_pieces.hpp"
#include "collective/objectives.hpp"
#include "collective/rank_grid.hpp"
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
  bool one_objective = false;     ///< all ranks have the same objective in a pass
};

/// The step that a group of ranks is in, as its device knows it: the host tells each device who its rank stands for,
/// the devices exchange that, and every later kernel reads K and the members of each objective from the table that
/// comes of it. Everything is enqueued on the current stream of the calling thread, which is always the same one.
///
/// The objectives of the first step are read on the host, which waits for the device once. What is wrong with a later
/// step (other calls, too many objectives) is found on the device, which turns the step's results into NaN; it is
/// raised by a later call of check_past_steps().
///
/// Steps follow one another in lines, which do not know of each other; each has a table of its own.
///
/// A step is one pass, which begin() starts, or several, each of which begin_pass() starts. For those the host has to
/// know how many objectives to make room for. It does where all ranks have the same in a pass, or there is but one
/// rank. Otherwise the hosts compare the passes of a line's first step that has several, for which they wait for the
/// device; later ones may have as many objectives, and not more. So they do in the first step of one pass that
/// begin_pass() starts.
///
/// On a grid whose ranks share objectives, tables have a row for each inside group instead of each rank.
///
/// Calls are collective: every rank, same order, one thread at a time.
class DeviceStep {
 public:
  /// `exchange`: of all ranks; must outlive the step, as must `pieces`, of those with other pieces of the model.
  /// `grid`: of all ranks, or none.
  DeviceStep(const DeviceExchange& exchange, c10::Device device, StepRules rules, RankGrid grid,
             const DeviceExchange& pieces);
  DeviceStep(const DeviceStep&) = delete;
  DeviceStep& operator=(const DeviceStep&) = delete;

  /// Calls the function, which is collective over the ranks; where others hold other pieces of the model, as
  /// ModelPieces::agree().
  void agree_with_pieces(const std::function<std::uint64_t()>& part);

  /// The objectives of the first step, before it begins. Raises as read_objectives() does, as check_one_objective() if
  /// that is the rule, and as grouped_records() on a grid. Waits for the device.
  Objectives agree_on_objectives(const StepRecord& own) const;

  /// To be called once, before the first step, with its K. It decides how large K may become: 64, but 16 where the
  /// first is at most 8; with sketches the next power of two, and 4 at least. Never more than `limit`.
  void bound_objectives(int first_k, int limit);

  /// The largest K there may be in a step of one pass; 0 before bound_objectives().
  int k_bound() const { return k_bound_; }
  /// The K of the first step, for which kernels are made.
  int first_k() const { return first_k_; }

  /// Enqueues the exchange of records that starts a step of one pass. The device counts the steps, on from
  /// continue_from(); the step of `own` is not used. From now on the line is the selected one.
  void begin(std::uint64_t line, const StepRecord& own);
  /// The same for a pass of a step that may have several.
  /// \throw AgreedError for more objectives than can be solved for, and what read_objectives() does where hosts compare
  void begin_pass(std::uint64_t line, const StepRecord& own);
  /// What follows is about this line, whose newest step begin() or begin_pass() has begun.
  void select(std::uint64_t line) { selected_ = &lines_.at(line); }
  /// The next step is `step` + 1. Waits for the device.
  void continue_from(std::int64_t step);

  /// The next step may have other objectives than those before, whatever the rules. Waits for the device.
  void forget_objectives();

  const StepRules& rules() const { return rules_; }
  /// Objectives that there is to be room for in the selected line's step of several passes, as this rank knows it.
  int pass_capacity() const { return selected_->capacity; }
  /// The same, or more, and alike on all ranks even where their objectives are not: for what they send each other.
  int pass_limit() const { return selected_->limit; }
  /// Of the selected line's newest step: no other step of this object has the same number.
  std::int64_t begun() const { return selected_->begun; }

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

  /// Of the selected line's step of one pass.
  const ObjectiveTable& table() const { return selected_->one_pass.table; }
  /// Of its step of several.
  const StepSums& sums() const { return selected_->passes.sums; }
  /// A pass of that: the newest, or the one before it.
  const PassTable& pass(int number) const { return selected_->passes.pass[number % 2]; }
  /// [kMaxObjectives], for what a bucket does with a pass.
  double* decay() const { return selected_->passes.decay; }
  PassShare* share() const { return selected_->passes.share; }
  /// [inside] on a grid: what the ranks of this one's inside group count for in its mean in a pass, the newest or the
  /// one before it.
  const double* inside_shares(int pass) const { return selected_->one_pass.inside[pass % 2].share; }
  /// [kMaxObjectives] rows, which are a bucket's sums: see cuda::launch_make_sums_table().
  const ObjectiveTable& sums_table() const { return selected_->passes.table; }
  /// Without names unless the rules say that they are remembered.
  ObjectiveRegistry registry() const { return registry_of(selected_->one_pass.slot); }
  ObjectiveRegistry registry_of_sums() const { return registry_of(selected_->passes.slot); }
  cuda::DeviceCounters* counters() const { return memory_.counters; }
  /// Where a kernel tells of an error of the selected line's step.
  cuda::FailureReport failure_report() const;
  /// For cuda::launch_gramian(), zero when a step begins.
  unsigned* gramian_tickets() const { return memory_.gramian_tickets; }

  // What follows waits for the current stream.

  cuda::DeviceCounters read_counters() const;
  /// Names of the k objectives of a line's newest step.
  std::vector<std::string> objective_names(std::uint64_t line, int k) const;
  /// Rows that each of them has.
  std::vector<std::int64_t> objective_rows(std::uint64_t line, int k) const;
  /// The names of the registry, by number. At most kMaxRememberedNames.
  std::vector<std::string> remembered_names() const;
  void set_remembered_names(const std::vector<std::string>& names);

  /// A graph uses what is held here, and may go on to do so.
  void keep_memory() {
    first_failure_.keep();
    keeps_lines_ = true;
  }

  /// Bytes of device memory held.
  std::size_t bytes() const;

 private:
  /// What a step of one pass is known by. The records serve every pass.
  struct OnePass {
    StepRecord* records;       // [W], side by side: they are gathered in place
    GroupRecords grouped;      // of a grid
    ObjectiveTable inside[2];  // by the last bit of the pass's number: of the inside group of a grid
    ObjectiveTable table;
    int* slot;  // of the registry

    /// Of which the table's rows are.
    const StepRecord* of_rows(const RankGrid& grid) const { return grid.has_levels() ? grouped.group : records; }
  };

  /// What a step of several passes is known by.
  struct Passes {
    StepSums sums;
    PassTable pass[2];  // by the last bit of its number
    ObjectiveTable table;
    int* slot;
    double* decay;
    PassShare* share;
  };

  struct Line {
    explicit Line(c10::Device device) : one_pass_buffer(device), passes_buffer(device) {}

    DeviceBuffer one_pass_buffer;
    OnePass one_pass = {};
    DeviceBuffer passes_buffer;
    Passes passes = {};
    bool has_passes = false;      // whether its newest step is one of several
    std::set<std::string> names;  // of that step's objectives, as far as the host knows them
    int capacity = 0;
    int limit = 0;
    bool is_open = false;      // whether that step goes on
    bool has_sums = false;     // whether the first pass of the newest step of several was not refused
    std::int64_t begun = 0;    // its number among those that the host has begun
    bool is_compared[2] = {};  // whether the hosts have compared a whole step of one pass, and one of several
  };

  /// What buffer_ holds.
  struct Memory {
    cuda::DeviceCounters* counters;
    StepHeader* failed;  // of the first step that had an error
    FirstObjectives first;
    unsigned* gramian_tickets;
  };

  static Memory lay_out(MemoryLayout& layout);
  OnePass lay_out_one_pass(MemoryLayout& layout) const;
  Passes lay_out_passes(MemoryLayout& layout) const;
  static ObjectiveTable lay_out_table(MemoryLayout& layout, std::size_t rows);
  static ObjectiveRegistry lay_out_registry(MemoryLayout& layout);
  Line& open(std::uint64_t line);
  void forget_idle_lines();
  std::vector<StepRecord> gather_on_hosts(const StepRecord& own) const;
  void make_room(Line& line, const StepRecord& own);
  void exchange_records(Line& line, int pass);
  const StepHeader* found(const Line& line) const { return line.one_pass.grouped.found; }
  ObjectiveRegistry registry_of(int* slot) const;
  FirstObjectives first_objectives() const { return rules_.keeps_objectives ? memory_.first : FirstObjectives{}; }
  cudaStream_t stream() const { return current_stream(device_); }

  std::optional<ModelPieces> pieces_;
  const DeviceExchange& exchange_;
  const c10::Device device_;
  const StepRules rules_;
  const RankGrid grid_;
  const int rows_;          // of a table
  const at::Tensor ranks_;  // of the grid
  int first_k_ = 0;
  int k_bound_ = 0;
  int solve_limit_ = 0;
  int most_capacity_ = 0;  // of all lines, where steps keep the objectives
  int most_limit_ = 0;
  std::int64_t begun_ = 0;  // steps; ranks count alike, whatever numbers their steps have
  std::map<std::uint64_t, Line> lines_;
  bool keeps_lines_ = false;
  Line* selected_ = nullptr;
  DeviceBuffer buffer_;
  DeviceBuffer registry_buffer_;
  Memory memory_ = {};
  ObjectiveRegistry registry_ = {};
  FailureNotice first_failure_;
};

}  // namespace bucket_moo
