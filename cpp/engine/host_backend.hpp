// The backend that reduces tensors in host memory, on a thread of its own.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

#include "c10d_collective/point_to_point_transport.hpp"
#include "collective/inside_group.hpp"
#include "collective/model_pieces.hpp"
#include "collective/moo_collective.hpp"
#include "collective/objective_tile.hpp"
#include "collective/own_rows.hpp"
#include "collective/persistent_buffer.hpp"
#include "collective/step_objectives.hpp"
#include "engine/backend.hpp"
#include "engine/bucket_book.hpp"
#include "engine/engine_options.hpp"
#include "engine/problem_set.hpp"
#include "engine/put_aside.hpp"
#include "engine/solver_memory.hpp"
#include "engine/worker.hpp"

namespace bucket_moo {

/// Runs first-in first-out on one worker thread, over a group that nothing else uses.
///
/// What all ranks find wrong with a step (AgreedError: other calls, other configuration, too many objectives) fails
/// what is left of that step on every rank, and the next one may be right again. After any other failure every later
/// reduction fails at once with the same error: ranks are out of step, and only a new state over a new group can go on.
class HostBackend final : public Backend, public std::enable_shared_from_this<HostBackend> {
 public:
  /// `group`: a group of CPU ranks (Gloo) that nothing else uses; null for a single rank.
  /// `pieces`: the same of the ranks that hold other pieces of this rank's model; null: there are none.
  static std::shared_ptr<HostBackend> make(c10::intrusive_ptr<c10d::ProcessGroup> group, EngineOptions options,
                                           c10::intrusive_ptr<c10d::ProcessGroup> pieces);
  ~HostBackend() override;

  int rank() const override { return links_.all ? links_.all->rank() : 0; }
  int world_size() const override { return links_.all ? links_.all->size() : 1; }
  void check(const Reduction&, bool, bool) override {}
  FuturePtr submit(PlacedReduction call) override;
  FuturePtr end_step(std::uint64_t line) override;
  bool tells_refusals() const override { return true; }
  void continue_from(std::int64_t step) override;
  std::optional<std::int64_t> counted_steps() const override { return std::nullopt; }
  std::vector<BucketRecord> records() const override;
  Counters counters() const override;
  std::size_t scratch_bytes() const override;
  std::vector<SavedSolverState> solver_states() const override;
  void set_solver_states(const std::vector<SavedSolverState>& saved) override;
  void shutdown() override;
  void check_may_wait() const override;

 private:
  /// What was solved for a bucket, and when.
  struct KeptWeights {
    std::vector<std::string> objectives;  ///< [K] whose weights these are
    std::int64_t step = 0;
    BucketSolution solution;
  };

  /// What is put aside of a bucket, and what for.
  struct HostRows {
    ObjectiveTile tile;                // of the bucket, or of its sketch
    OwnRows own;                       // of a bucket with a sketch whose step has several passes
    std::int64_t width = 0;            // columns of the sketch; 0: there is none
    std::int64_t index = 0;            // the bucket's place in the pass that was its first
    bool takes_sketches = false;       // whether the step solves, or might
    std::optional<KeptWeights> known;  // by which rows are added to one sum
  };
  using PutAside = bucket_moo::PutAside<HostRows>;  // the rows are the worker's, the rest guarded by mutex_

  using Book = BucketBook<BucketRecords, KeptWeights, SolverMemory, std::shared_ptr<PutAside>>;

  /// A reduction on its way through the worker. With a sketch its prepare() may run while the one before it still sums,
  /// and where weights lag its solve() runs when its Future is done.
  struct Job {
    PlacedReduction call;
    FuturePtr future;
    bool prepared = false;
    std::unique_ptr<SketchedBucket> sketched;  // null: the weights are kept ones
    std::optional<KeptWeights> kept;           // what serves in this step if nothing has to be waited for
  };
  using JobPtr = std::shared_ptr<Job>;

  /// What is known of a bucket whose parts have weights of their own: one for each parameter.
  struct BucketParts {
    std::vector<double> gramians;       // [parts, K, K]
    RowNorms norms;                     // the same; or empty
    std::vector<std::size_t> problems;  // of each part
  };

  /// A bucket that has all its rows, and may wait for the weights of its whole step.
  struct Closed {
    JobPtr job;
    std::shared_ptr<PutAside> aside;
    TileGramian gramian;  // empty: the step does not solve, or the parts have Gramians
    BucketParts parts;
  };

  /// Where a step's weights are from.
  struct WeightSource {
    std::optional<KeptWeights> kept;  // in its own order of objectives; of step 0: the mean
    bool solves = true;
  };

  /// What one bucket adds to the problem of the model.
  struct ModelPart {
    BucketId bucket;
    RandomKey key;
    std::int64_t step = 0;
    BucketSolution of_bucket;  // without weights
  };

  /// A step as far as it has come.
  struct Step {
    std::int64_t number = 0;
    StepObjectives objectives;
    Objectives newest_pass;
    std::string said;                // in it, by all ranks
    ProblemSet problems;             // where buckets have parts
    std::vector<Objectives> inside;  // of each pass, where there is an inside group
    std::exception_ptr failure;      // alike on every rank
  };

  /// Who this rank exchanges with. Null: nobody.
  struct Links {
    std::shared_ptr<PointToPointTransport> all;
    std::shared_ptr<PointToPointTransport> across;  // those that reduce the same part: all, without a grid
    std::shared_ptr<PointToPointTransport> inside;  // those that share its objective on a grid, and reduce other parts
    std::shared_ptr<PointToPointTransport> pieces;  // those that hold other pieces of the model, no grid then
  };

  HostBackend(Links links, EngineOptions options);

  void work_on(const JobPtr& job);
  void attempt(std::uint64_t line, const std::function<void()>& part);
  std::exception_ptr failure_of(std::uint64_t line) const;
  static void complete(Job& job, const std::exception_ptr& failure);
  void run(const JobPtr& job);
  void agree(const PlacedReduction& call);
  void agree_in_group(const PlacedReduction& call);
  void check_configuration();
  std::uint64_t hash_of_call(const PlacedReduction& call);
  void begin_pass(const PlacedReduction& call);
  bool reduces_at_once(const PlacedReduction& call) const;
  void reduce_dense(Job& job);
  BucketSolution reduce_exact(const PlacedReduction& call);
  void sum_inside(const PlacedReduction& call);
  void gather(const PlacedReduction& call, const ShardedBucket& bucket);
  ShardedBucket sharded(const PlacedReduction& call, std::int64_t tile_limit = MooCollective::kSumTileBytes) const;
  bool is_of_model(std::uint64_t line) const;
  const Grouping& grouping_of(std::uint64_t line) const;
  bool spans_buckets(const PlacedReduction& call) const;
  Sections sections_of(const PlacedReduction& call, const ShardedBucket& bucket) const;
  void reduce_parts(const PlacedReduction& call);
  void close_parts(Closed bucket);
  void finish_parts();
  void combine_solved();
  void combine_parts(const Closed& bucket);
  void add_to_problems(const PlacedReduction& call, BucketParts& parts);
  bool is_solved(std::uint64_t line, const BucketParts& parts) const;
  std::vector<double> weights_of(std::uint64_t line, const BucketParts& parts) const;
  void solve_ready(std::uint64_t line);
  std::uint64_t random_bucket(const PartProblem& problem, std::span<const std::string> objectives) const;
  void keep_records(const PlacedReduction& call, const BucketParts& parts);
  void put_aside(const JobPtr& job);
  static JobPtr late_part(const PlacedReduction& call, const HostRows& rows);
  std::shared_ptr<PutAside> aside_of(const PlacedReduction& call);
  void begin_rows(const PlacedReduction& call, HostRows& rows);
  void add_rows(const PlacedReduction& call, HostRows& rows);
  void note_memory(PutAside& aside);
  double coefficient_of(const PlacedReduction& call, const KeptWeights& known) const;
  WeightSource source_of(const PlacedReduction& call, std::int64_t width, const std::vector<std::string>& names) const;
  void close(Closed bucket);
  KeptWeights solve_step(const BucketId& owner, const RandomKey& key, std::uint64_t line, std::int64_t step,
                         BucketSolution problem);
  void combine(const Closed& bucket, const KeptWeights& used, bool is_fresh);
  BucketSolution result_of(const Closed& bucket, const KeptWeights& used, bool is_fresh) const;
  void solve_model();
  void keep_weights(const BucketId& bucket, const KeptWeights& solved);
  void break_off_model();
  KeptWeights reduce_sketched(Job& job);
  void prepare(Job& job);
  void prepare_next(std::uint64_t line);
  KeptWeights solve(Job& job);
  static RandomKey key_of(const PlacedReduction& call, std::uint64_t seed);
  void set_solving_late(bool is_solving);
  std::unique_lock<std::mutex> lock_after_late_solve() const;
  std::vector<double> prepare_method(const BucketId& bucket, const std::vector<std::string>& objectives);
  void store_memory(const BucketId& bucket, const std::vector<std::string>& objectives,
                    const std::vector<double>& values);
  void keep_records(const PlacedReduction& call, std::vector<BucketRecord> records);
  Book& memories();
  const Book& memories() const;
  SolverMemory& memory_of(const BucketId& bucket);
  void reduce_sparse(const PlacedReduction& call);
  std::size_t collective_bytes() const;

  const EngineOptions options_;
  const Grouping of_direct_calls_;
  std::vector<double> preference_;  // in the order of the objectives of the newest solve; the worker's
  const Method method_;             // points to it and into options_
  const Links links_;

  // Used by the worker alone.
  MooCollective collective_;
  std::optional<InsideGroup> inside_;
  std::optional<ModelPieces> pieces_;
  bool configuration_checked_ = false;
  bool pieces_checked_ = false;
  std::exception_ptr failure_;           // for good
  std::map<std::uint64_t, Step> steps_;  // by line
  std::vector<Closed> deferred_;         // of the hook's step, in order
  std::vector<ModelPart> model_;         // the same
  std::vector<JobPtr> finished_;         // that were deferred: their Futures are to be completed
  PersistentBuffer combined_;            // a bucket's rows of this rank, where they are not to be overwritten

  mutable std::mutex mutex_;    // guards what follows
  std::deque<JobPtr> waiting_;  // jobs that the worker has not begun
  Book book_;
  Book part_memories_;  // of methods, by the parameters of a problem, where buckets have parts
  Counters counters_;
  std::size_t scratch_bytes_ = 0;
  int late_solves_ = 0;
  mutable std::condition_variable solved_late_;

  Worker worker_;  // last: its thread must end before the rest goes
};

}  // namespace bucket_moo
