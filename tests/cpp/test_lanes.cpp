// The solvers under several lanes, without a GPU: each lane is a thread, collectives are barriers. A missing sync() is
// a data race (build with -fsanitize=thread), a collective that some lane skips is a deadlock (run under a timeout),
// and a lane that disagrees gives another answer than the host.

#include <barrier>
#include <bucket_moo/solve.hpp>
#include <cmath>
#include <cstdio>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace {

using bucket_moo::Located;

/// What the lanes of one group share.
struct Group {
  explicit Group(int n) : lanes(n), meet(n), values(static_cast<std::size_t>(n)) {}
  int lanes;
  std::barrier<> meet;
  std::vector<Located> values;
};

/// A lane policy of threads.
class ThreadLanes : public bucket_moo::SingleReductions<ThreadLanes> {
 public:
  static constexpr bool kSerial = false;

  ThreadLanes(Group& group, int lane) : group_(&group), lane_(lane) {}
  int lane() const { return lane_; }
  int count() const { return group_->lanes; }
  void sync() const { group_->meet.arrive_and_wait(); }
  bool any(bool x) const { return max(x ? 1.0 : 0.0) > 0.0; }
  template <class... Reductions>
  void reduce(Reductions... reductions) const {
    (reduce_one(reductions), ...);
  }
  template <class T>
  static T* near(T* pointer) {
    return pointer;
  }
  static double divisor(double x) { return 1.0 / x; }
  static double divide(double x, double divisor) { return x * divisor; }

 private:
  template <class Reduction>
  void reduce_one(Reduction reduction) const {
    put(group_->values[static_cast<std::size_t>(lane_)], reduction.value);
    sync();
    get(group_->values[0], reduction.value);
    for (int i = 1; i < count(); ++i) {
      auto other = reduction.value;
      get(group_->values[static_cast<std::size_t>(i)], other);
      reduction.join(other);
    }
    sync();
  }
  static void put(Located& at, double value) { at.value = value; }
  static void put(Located& at, Located value) { at = value; }
  static void get(const Located& at, double& value) { value = at.value; }
  static void get(const Located& at, Located& value) { value = at; }

  Group* group_;
  int lane_;
};

}  // namespace

int main() {
  using bucket_moo::MethodId;
  int failures = 0;
  int checks = 0;
  double worst = 0.0;
  std::mt19937_64 random(11);
  std::normal_distribution<double> normal;
  for (const int k : {1, 2, 3, 7, 12}) {
    for (int trial = 0; trial < 6; ++trial) {
      // Wide, and with fewer dimensions than objectives; every third row a copy, every fifth zero.
      const int n = trial % 2 == 0 ? k + 3 : 1 + k / 3;
      std::vector<std::vector<double>> rows(static_cast<std::size_t>(k),
                                            std::vector<double>(static_cast<std::size_t>(n)));
      for (std::size_t i = 0; i < rows.size(); ++i) {
        for (double& x : rows[i]) x = normal(random);
        if (trial % 3 == 2 && i % 3 == 2) rows[i] = rows[i - 1];
        if (trial > 2 && i % 5 == 4) rows[i].assign(rows[i].size(), 0.0);
      }
      std::vector<double> gramian;
      for (const auto& a : rows) {
        for (const auto& b : rows) {
          double product = 0.0;
          for (std::size_t x = 0; x < a.size(); ++x) product += a[x] * b[x];
          gramian.push_back(product);
        }
      }
      for (int number = 0; number < bucket_moo::kMethods; ++number) {
        const auto id = static_cast<MethodId>(number);
        bucket_moo::Method method{.id = id};
        // PCGrad and GradVac decide by the sign of products that may be noise; there are no ties in these two.
        const bool degenerate = n < k || trial % 3 == 2;
        if (degenerate && (id == MethodId::gradvac || id == MethodId::krum)) continue;
        method.aligned_mtl.scale_mode = static_cast<bucket_moo::ScaleMode>(trial % 3);
        method.fairgrad.alpha = trial % 2 == 0 ? 0.5 : 2.0;
        method.krum.n_byzantine = trial % 2;
        method.krum.n_selected = 1 + trial % 3;
        method.smoothing.alpha = trial % 2 == 0 ? 0.0 : 0.5;
        if (trial == 4) method.mgda.normalize = bucket_moo::Normalize::l2;
        if (trial == 5) method.cagrad.c = 2.0;
        const auto size = static_cast<std::size_t>(k);
        std::vector<double> scratch(bucket_moo::solve_scratch_size(k));
        std::vector<double> expected(size);
        std::vector<double> host_state(bucket_moo::state_size(method, k), 0.25);
        std::vector<double> state = host_state;
        const bucket_moo::Solution host =
            bucket_moo::solve(bucket_moo::HostLanes{}, method, {1, 2, 3}, k, gramian.data(), expected.data(),
                              scratch.data(), host_state.empty() ? nullptr : host_state.data());
        std::vector<double> weights(size);
        Group group(5);
        std::vector<bucket_moo::Solution> solutions(5);
        std::vector<std::thread> threads;
        for (int lane = 0; lane < group.lanes; ++lane) {
          threads.emplace_back([&, lane] {
            solutions[static_cast<std::size_t>(lane)] =
                bucket_moo::solve(ThreadLanes(group, lane), method, {1, 2, 3}, k, gramian.data(), weights.data(),
                                  scratch.data(), state.empty() ? nullptr : state.data());
          });
        }
        for (std::thread& thread : threads) thread.join();

        // Lanes add in another order than the host, so compare what is unique: the update, by its norm and products.
        double difference = 0.0;
        for (int i = 0; i < k; ++i) {
          double moved = 0.0;
          for (int j = 0; j < k; ++j) {
            const auto at = static_cast<std::size_t>(j);
            moved += gramian[static_cast<std::size_t>(i * k + j)] * (weights[at] - expected[at]);
          }
          difference = std::fmax(difference, std::fabs(moved));
        }
        for (std::size_t i = 0; i < state.size(); ++i) {
          difference = std::fmax(difference, std::fabs(state[i] - host_state[i]));
        }
        worst = std::fmax(worst, difference);
        ++checks;
        bool alike = difference <= 1e-9;
        for (const bucket_moo::Solution& s : solutions)
          alike = alike && s.status == host.status && s.active == host.active;
        if (!alike) {
          ++failures;
          std::printf("FAILED K=%d trial=%d method=%d difference=%.2e\n", k, trial, static_cast<int>(id), difference);
        }
      }
    }
  }
  std::printf("5 lanes against 1: worst difference in <g_k, d> %.2e; %d checks, %d failed\n", worst, checks, failures);
  return failures == 0 ? 0 : 1;
}
