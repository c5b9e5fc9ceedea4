// The backend that reduces tensors in device memory, on a stream of its own.
#pragma once

#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <utility>
#include <vector>

#include "c10d_collective/device_collective.hpp"
#include "c10d_collective/device_memory.hpp"
#include "c10d_collective/device_parts.hpp"
#include "c10d_collective/device_results.hpp"
#include "c10d_collective/device_tile.hpp"
#include "engine/backend.hpp"
#include "engine/bucket_book.hpp"
#include "engine/engine_options.hpp"
#include "engine/put_aside.hpp"

namespace bucket_moo {

/// Enqueues everything on one side stream from the calling thread, over the caller's group, and completes the Future at
/// once: who waits for it waits for the stream. The first reduction waits for the device (ranks compare configurations
/// and objectives), every later one does not. Reports do.
///
/// What is wrong with a later step is found on the device: its results are NaN, and the step after the next one raises
/// AgreedError as it starts, or one behind it, as does every later one: see DeviceStep::check_past_steps(). After any
/// other failure every later reduction fails at once with the same error.
///
/// What is put aside between the passes of a step, and weights of the whole model: device_passes.cpp. Parts of buckets:
/// device_part_groups.cpp.
///
/// Can be captured in a graph once the same buckets have been reduced; the graph repeats the objective and the weight
/// of its capture, the device counts the steps, and the engine must outlive the graph. The host decides which steps
/// solve, hence not with a sketch whose weights serve for several. Nor can a step of several passes.
class DeviceBackend final : public Backend {
 public:
  /// `group`: the caller's, with a backend for `device`; null for a single rank.
  /// `pieces`: of the ranks with other pieces of the model; null: there are none.
  DeviceBackend(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device, EngineOptions options,
                c10::intrusive_ptr<c10d::ProcessGroup> pieces);
  ~DeviceBackend() override { give_up(take_deferred(), broken_off()); }

  int rank() const override { return collective_.exchange().rank(); }
  int world_size() const override { return collective_.exchange().size(); }
  void check(const Reduction& reduction, bool starts_step, bool is_alone) override;
  FuturePtr submit(PlacedReduction call) override;
  FuturePtr end_step(std::uint64_t line) override;
  bool tells_refusals() const override { return false; }
  void continue_from(std::int64_t step) override;
  /// Counted by the device once a graph was captured, which waits for it.
  std::optional<std::int64_t> counted_steps() const override;
  std::vector<BucketRecord> records() const override;
  Counters counters() const override;
  std::size_t scratch_bytes() const override;
  std::vector<SavedSolverState> solver_states() const override;
  void set_solver_states(const std::vector<SavedSolverState>& saved) override;
  void shutdown() override;
  void check_may_wait() const override {}

 private:
  /// A bucket's record, whose result stays on the device.
  struct DeviceRecord : BucketRecord {
    DeviceResult on_device;
    int k_bound = 0;  // of the result
    std::uint64_t line = kHookLine;
    bool is_of_model = false;  // whether the weights are those that the model's buckets used
    bool is_kept = false;      // of the model: from an earlier step, as is the Gramian, if there was one
    bool has_gramian = true;
    std::shared_ptr<DeviceParts> parts =
        {};                                // that have weights of their own, in place of what is on_device; else null
    std::vector<std::string> groups = {};  // of each of them
    BucketId bucket = {};
    std::int64_t begun = 0;  // its step, as DeviceStep numbers it
  };

  /// Which weights a bucket of a step of several passes, or of the model, is combined by.
  struct WeightSource {
    enum class Of {
      step,   // those of its own solve
      kept,   // those that are kept for it
      totals  // alike for all objectives that totals were told of: of a first step whose weights lag
    };
    Of of = Of::step;
    bool solves = true;
  };

  /// What is put aside of a bucket: the rows of its shard, or sketches and this rank's own rows.
  struct Rows {
    explicit Rows(c10::Device device) : tile(device), own(device) {}

    DeviceTile tile;
    DeviceOwnRows own;
    DType dtype = DType::float32;  // of the bucket
    std::int64_t width = 0;        // columns of the sketches; 0: there are none
    std::int64_t index = 0;        // of the bucket in the pass that reached it first
    WeightSource source;           // the same in all passes of a step
    int passes = 0;                // of the step, that have added to it
    std::shared_ptr<DeviceParts> parts;
    std::vector<std::string> groups;  // of each of them, as `parts` knows them

    /// Whether all of its sums are in the units of the step. `last`: its last pass.
    bool was_in_every_pass(int last) const { return passes == last + 1; }
  };
  using PutAside = bucket_moo::PutAside<Rows>;

  /// A bucket that waits for the weights of its whole step.
  struct Deferred {
    PlacedReduction call;
    std::shared_ptr<PutAside> aside;
    FuturePtr future;
  };

  /// Weights that serve again.
  struct DeviceKept {
    DeviceResult result;
    DeviceSketches sketches;  // of a solve that is still to come
    std::int64_t step = 0;    // of the solve that the weights were last asked of
  };

  using Book = BucketBook<DeviceRecord, DeviceKept, DeviceSolverState, std::shared_ptr<PutAside>>;

  /// A solve that is still to come.
  struct LateSolve {
    BucketId bucket;
    std::uint64_t line;
    std::int64_t index;
    std::int64_t step;
    std::shared_ptr<PutAside> aside;  // of a step of several passes
  };

  /// The problem of the model, while the step's buckets come.
  struct ModelProblem {
    std::int64_t index;  // of the first bucket
    std::int64_t step;
    std::shared_ptr<PutAside> aside;
    WeightSource::Of of;
  };

  /// Parameters that share weights and may lie in several buckets.
  struct PartGroup {
    std::shared_ptr<DeviceProblems> problems;
    std::int64_t begun = 0;  // the step that what follows is of, as DeviceStep numbers them
    BucketId parameters;     // so far
    bool is_solved = false;
  };

  /// The method's options in device memory, and the method that points to them.
  struct DeviceMethod {
    DeviceMethod(const MethodConfig& config, c10::Device device);
    at::Tensor preference;
    at::Tensor permutation;
    Method method;
  };

  void check_capture(const Reduction& reduction, bool is_alone);
  bool is_of_model(std::uint64_t line) const { return options_.grouping.scope() == Scope::model && line == kHookLine; }
  bool is_of_passes(const PlacedReduction& call) const;
  std::vector<BucketRecord> read(const DeviceRecord& record) const;
  FuturePtr enqueue(PlacedReduction& call);
  void record_streams(const PlacedReduction& call) const;
  void agree_on_first_step(const PlacedReduction& call);
  int agree_in_group(const PlacedReduction& call);
  bool has_pieces() const { return collective_.pieces().size() > 1; }
  void reduce_dense(const PlacedReduction& call);
  void reduce_sketched(const PlacedReduction& call, Book::Page& page);
  DeviceBucket exact_bucket(const PlacedReduction& call) const;
  DeviceBucket bucket_of(const PlacedReduction& call, const Rows& rows);
  void put_aside(const PlacedReduction& call);
  void begin_rows(const PlacedReduction& call, Rows& rows);
  bool fits(const PlacedReduction& call, const Rows& rows);
  void add_rows(const PlacedReduction& call, Rows& rows);
  WeightSource source_of(const PlacedReduction& call, std::int64_t width) const;
  DeviceKept* kept_of(const PlacedReduction& call) const;
  void close(const PlacedReduction& call, const std::shared_ptr<PutAside>& aside);
  void close_in_model(const PlacedReduction& call, const std::shared_ptr<PutAside>& aside);
  // See device_part_groups.cpp.
  const Grouping& grouping_of(std::uint64_t line) const;
  bool groups_span_buckets(std::uint64_t line) const;
  void close_parts(const PlacedReduction& call, const std::shared_ptr<PutAside>& aside);
  void cut_parts(const PlacedReduction& call, const DeviceBucket& bucket, Rows& rows);
  PartGroup& open_group(const std::string& name);
  void solve_group(PartGroup& group, const DeviceTile& tile, bool is_fresh);
  PartSolve part_solve() const;
  const DeviceSolverState* memory_of_group(BucketId parameters);
  bool is_solved(std::uint64_t line, const Rows& rows);
  void combine_parts(const PlacedReduction& call, const Rows& rows, bool is_fresh);
  void combine_solved();
  void finish_parts();
  std::vector<BucketRecord> read_parts(const DeviceRecord& record) const;
  Book& memories() { return options_.grouping.has_parts() ? part_memories_ : book_; }
  const Book& memories() const { return options_.grouping.has_parts() ? part_memories_ : book_; }

  void combine(const PlacedReduction& call, const Rows& rows, const DeviceResult& used, bool is_fresh);
  void defer(const PlacedReduction& call, const std::shared_ptr<PutAside>& aside);
  std::vector<Deferred> solve_model();
  const DeviceResult& late_result();
  const DeviceResult& model_result();
  std::vector<Deferred> take_broken_off(const PlacedReduction& call);
  std::vector<Deferred> take_deferred();
  static void give_up(std::vector<Deferred> buckets, const std::exception_ptr& error);
  DeviceRecord& open_record(const PlacedReduction& call, int k_bound);
  void solve_late(std::uint64_t line);
  const DeviceResult& keep(Book::Page& page, std::int64_t step);
  void reduce_sparse(const PlacedReduction& call);
  FuturePtr make_future(const PlacedReduction& call) const;
  static void complete(PlacedReduction& call, const FuturePtr& future);
  const DeviceSolverState* memory_of(Book::Page& page);

  const c10::Device device_;
  const EngineOptions options_;
  mutable SideStream side_;
  const DeviceMethod method_;
  DeviceCollective collective_;
  std::atomic<bool> shut_down_ = false;

  mutable std::mutex enqueue_;  // guards what follows; held while a call is enqueued
  std::exception_ptr failure_;  // for good
  bool captured_ = false;       // a graph uses what is held here: nothing is let go any more
  Book book_;
  DeviceSketches sketches_;                   // of a bucket that is solved for at once
  std::vector<LateSolve> late_;               // of this step, in order
  std::optional<ModelProblem> model_;         // of the hook's step, if it solves
  std::optional<DeviceResult> model_result_;  // with the weights that the buckets of the newest one used
  std::vector<Deferred> deferred_;            // of the hook's step, in order
  std::vector<Deferred> combined_;            // of them, whose Futures are still to be completed
  std::map<std::string, PartGroup> groups_;   // of the hook's line
  Grouping of_direct_calls_;
  Book part_memories_;  // of methods, where buckets have parts
  std::optional<DeviceResult> late_result_;
  std::vector<DeviceResult> outgrown_results_;  // that a graph writes to
  std::int64_t sparse_ = 0;
};

}  // namespace bucket_moo
