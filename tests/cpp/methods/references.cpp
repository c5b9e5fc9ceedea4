// Methods that their papers give as loops, and smoothing: against such loops.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "methods/checks.hpp"

namespace method_checks {

namespace {

/// GradVac as its paper has it, in long double. `phi` [K, K] in and out.
Vector gradvac_reference(const Gramian& g, const std::vector<int>& order, double beta, std::vector<Real>& phi) {
  const std::vector<int> on = active(g);
  std::vector<Real> total(at(g.k));
  for (int i : on) {
    std::vector<Real> c(at(g.k));
    c[at(i)] = 1;
    for (int t = 0; t < g.k; ++t) {
      const int j = order[at(i * g.k + t)];
      if (j == i || g(j, j) == 0) continue;
      const std::vector<Real> product = times(g, c);
      const Real size = std::sqrt(inner(c, product));
      const Real rho = std::clamp(product[at(j)] / size / norm(g, j), Real{-1}, Real{1});
      Real& target = phi[at(i * g.k + j)];
      if (rho < target) {
        c[at(j)] += size * (target * std::sqrt(1 - rho * rho) - rho * std::sqrt(1 - target * target)) /
                    (norm(g, j) * std::sqrt(1 - target * target));
      }
      target = (1 - static_cast<Real>(beta)) * target + static_cast<Real>(beta) * rho;
    }
    for (std::size_t l = 0; l < c.size(); ++l) total[l] += c[l] / static_cast<Real>(on.size());
  }
  return {total.begin(), total.end()};
}

/// Adasum on the gradients themselves.
std::vector<Real> adasum_reference(const std::vector<std::vector<Real>>& leaves) {
  std::vector<std::vector<Real>> level = leaves;
  while (level.size() > 1) {
    std::vector<std::vector<Real>> next;
    for (std::size_t i = 0; i < level.size(); i += 2) {
      if (i + 1 == level.size()) {
        next.push_back(level[i]);
        continue;
      }
      const Real product = inner(level[i], level[i + 1]);
      const Real first = inner(level[i], level[i]);
      const Real second = inner(level[i + 1], level[i + 1]);
      std::vector<Real> joined;
      for (std::size_t x = 0; x < level[i].size(); ++x) {
        joined.push_back((1 - product / (2 * first)) * level[i][x] + (1 - product / (2 * second)) * level[i + 1][x]);
      }
      next.push_back(joined);
    }
    level = next;
  }
  return level[0];
}

}  // namespace

void check_gradvac(Random& random, Worst& worst) {
  for (const int k : {1, 2, 3, 5, 8, 16, 33}) {
    std::vector<int> order;
    for (int i = 0; i < k; ++i) {
      std::vector<int> row(at(k));
      std::iota(row.begin(), row.end(), 0);
      std::shuffle(row.begin(), row.end(), random);
      order.insert(order.end(), row.begin(), row.end());
    }
    for (const double beta : {0.0, 0.1, 0.5, 1.0}) {
      Method method = of(MethodId::gradvac);
      method.gradvac.beta = beta;
      method.gradvac.permutation = order.data();
      Vector state(bucket_moo::state_size(method, k));
      check(state.size() == at(k * k), "gradvac state size");
      std::vector<Real> phi(at(k * k));
      const Gradients common = gaussian(random, 1, 2 * k + 3);
      for (int step = 0; step < 6; ++step) {
        Gradients rows = gaussian(random, k, 2 * k + 3);
        for (int i = 0; i < k; ++i) {
          for (int x = 0; x < rows.n; ++x) rows.at(i, x) += 0.7 * common.at(0, x);
          if (step == 3 && i % 3 == 1) copy_row(rows, i, i, 0.0);  // inactive for a step: its targets stay
        }
        const Gramian g = gramian(rows);
        if (step == 0 || beta == 0.0) {
          Method pcgrad = of(MethodId::pcgrad);
          pcgrad.pcgrad.permutation = order.data();
          Vector copy = state;
          check(largest_difference(solve(method, g, {}, copy.data()).weights, solve(pcgrad, g).weights) <= 1e-12,
                label("gradvac with fresh targets is PCGrad", "common component", k));
          check(largest_difference(solve(method, g).weights, solve(pcgrad, g).weights) <= 1e-12,
                label("gradvac without state is PCGrad", "common component", k));
        }
        const Vector weights = solve(method, g, {}, state.data()).weights;
        const double error = largest_difference(weights, gradvac_reference(g, order, beta, phi));
        double target = 0;
        for (std::size_t i = 0; i < phi.size(); ++i)
          target = std::max(target, static_cast<double>(std::fabs(phi[i] - static_cast<Real>(state[i]))));
        worst.add("gradvac against reference", error);
        worst.add("gradvac targets against reference", target);
        check(error <= 1e-8 && target <= 1e-9, label("gradvac", "common component", k));
        Gramian broken = g;
        broken(0, 0) = std::numeric_limits<double>::infinity();
        const Vector before = state;
        solve(method, broken, {}, state.data());
        check(state == before, "a nonfinite step leaves state alone");
      }
    }
  }
}

void check_krum(const std::string& family, const Gramian& g) {
  const std::vector<int> on = active(g);
  const int k = static_cast<int>(on.size());
  for (const int byzantine : {0, 1, 3}) {
    for (const int selected : {1, 2, 5, 100}) {
      Method method = of(MethodId::krum);
      method.krum.n_byzantine = byzantine;
      method.krum.n_selected = selected;
      const Answer answer = solve(method, g);
      if (k == 0) continue;
      const auto name = [&](const char* part) { return label(std::string("krum ") + part, family, g.k); };
      if (k < byzantine + 3) {
        check(answer.solution.status == Status::fallback, name("too few"));
        for (int i : on) check(answer.weights[at(i)] == 1.0 / k, name("too few: equal"));
        continue;
      }
      std::vector<std::pair<Real, int>> scores;
      for (int i : on) {
        std::vector<Real> distances;
        for (int j : on) {
          if (j != i)
            distances.push_back(std::max(
                Real{0}, static_cast<Real>(g(i, i)) + static_cast<Real>(g(j, j)) - 2 * static_cast<Real>(g(i, j))));
        }
        std::sort(distances.begin(), distances.end());
        scores.emplace_back(std::accumulate(distances.begin(), distances.begin() + (k - byzantine - 2), Real{0}), i);
      }
      const int m = std::min(selected, k);
      std::vector<std::pair<Real, int>> sorted = scores;
      std::sort(sorted.begin(), sorted.end());
      const Real limit = sorted[at(m - 1)].first;
      const Real slack = 64 * kEps * static_cast<Real>(k) * mean_diagonal(g) * static_cast<Real>(k);
      int chosen = 0;
      for (const auto& [score, i] : scores) {
        const bool in = answer.weights[at(i)] > 0;
        chosen += in ? 1 : 0;
        if (in) check(answer.weights[at(i)] == 1.0 / m, name("mean"));
        check(in ? score <= limit + slack : score >= limit - slack, name("the lowest scores"));
      }
      check(chosen == m, name("as many as asked for"));
    }
  }
}

void check_adasum(Random& random, Worst& worst) {
  for (const int k : {1, 2, 3, 5, 7, 8, 16, 33, 64}) {
    for (int trial = 0; trial < 10; ++trial) {
      Gradients rows = gaussian(random, k, 2 * k + 3);
      if (trial % 2 == 1) scale_rows_over(random, rows, 4);
      std::vector<std::vector<Real>> leaves;
      for (int i = 0; i < k; ++i) {
        if (trial > 5 && i % 4 == 2) {
          copy_row(rows, i, i, 0.0);
          continue;
        }
        leaves.emplace_back();
        for (int x = 0; x < rows.n; ++x) leaves.back().push_back(static_cast<Real>(rows.at(i, x)));
      }
      const Vector w = solve(of(MethodId::adasum), gramian(rows)).weights;
      const std::vector<Real> expected = adasum_reference(leaves);
      Real error = 0;
      for (int x = 0; x < rows.n; ++x) {
        Real got = 0;
        for (int i = 0; i < k; ++i) got += static_cast<Real>(w[at(i)]) * static_cast<Real>(rows.at(i, x));
        error = std::max(error, std::fabs(got - expected[at(x)]) / std::sqrt(inner(expected, expected)));
      }
      worst.add("adasum against reference", static_cast<double>(error));
      check(static_cast<double>(error) <= 1e-12, label("adasum", "wishart", k));
    }
  }
  check(solve(of(MethodId::adasum), Gramian{2, {1, 1, 1, 1}}).weights == Vector({0.5, 0.5}),
        "adasum of copies is the mean");
  check(solve(of(MethodId::adasum), Gramian{2, {1, 0, 0, 4}}).weights == Vector({1, 1}),
        "adasum of orthogonal is the sum");
}

void check_smoothing(Random& random) {
  for (const MethodId id : {MethodId::mean, MethodId::mgda, MethodId::gradvac}) {
    const int k = 5;
    Method method = of(id);
    method.smoothing.alpha = 0.75;
    Method plain = of(id);
    Vector state(bucket_moo::state_size(method, k));
    Vector plain_state(bucket_moo::state_size(plain, k));
    check(state.size() == plain_state.size() + 2 * k, "smoothing state size");
    Vector past(at(k));
    std::vector<bool> known(at(k));
    for (int step = 0; step < 8; ++step) {
      Gradients rows = gaussian(random, k, 8);
      if (step % 3 == 0) copy_row(rows, 2, 2, 0.0);
      const Gramian g = gramian(rows);
      const Vector fresh = solve(plain, g, {}, plain_state.empty() ? nullptr : plain_state.data()).weights;
      const Vector smooth = solve(method, g, {}, state.data()).weights;
      for (int i = 0; i < k; ++i) {
        if (g(i, i) == 0) {
          check(smooth[at(i)] == fresh[at(i)], "smoothing leaves inactive objectives alone");
          continue;
        }
        const double expected = known[at(i)] ? 0.75 * past[at(i)] + 0.25 * fresh[at(i)] : fresh[at(i)];
        check(std::fabs(smooth[at(i)] - expected) <= 1e-15, "smoothing");
        past[at(i)] = expected;
        known[at(i)] = true;
      }
    }
  }
}

namespace {

Real length_of(const Gramian& g, const Vector& weights) {
  std::vector<Real> w(weights.begin(), weights.end());
  const std::vector<Real> product = times(g, w);
  return std::sqrt(std::max(inner(w, product), Real{0}));
}

}  // namespace

void check_lengths(Random& random, Worst& worst) {
  for (const int k : {1, 2, 3, 8, 33, 64}) {
    for (int trial = 0; trial < 8; ++trial) {
      Gradients rows = gaussian(random, k, 2 * k + 3);
      if (trial % 2 == 1) scale_rows_over(random, rows, 4);
      if (trial > 3 && k > 2) copy_row(rows, 1, 1, 0.0);
      const Gramian g = gramian(rows);
      const std::vector<int> on = active(g);
      Vector mean(at(k));
      for (const int i : on) mean[at(i)] = 1.0 / static_cast<double>(on.size());
      const Real expected = length_of(g, mean);
      const auto compare = [&](const std::string& what, const Vector& w, Real length) {
        const auto error = static_cast<double>(std::fabs(length_of(g, w) / length - 1));
        worst.add(what, error);
        check(error <= 1e-12, label(what, "wishart", k));
      };

      const Vector normalized = solve(of(MethodId::normalized_mean), g).weights;
      compare("length of the normalized mean", normalized, expected);
      for (const int i : on) {
        const Real heard = static_cast<Real>(normalized[at(i)]) * norm(g, i);
        const Real first = static_cast<Real>(normalized[at(on.front())]) * norm(g, on.front());
        check(std::fabs(heard / first - 1) <= Real{1e-13}, "the normalized mean hears all alike");
      }

      for (const MethodId id : {MethodId::upgrad, MethodId::nash_mtl, MethodId::adasum}) {
        Method method = of(id);
        const Vector own = solve(method, g).weights;
        method.length = {bucket_moo::Length::mean};
        compare("length as the mean's", solve(method, g).weights, expected);
        method.length = {bucket_moo::Length::fixed, 0.25};
        const Vector fixed = solve(method, g).weights;
        compare("length as given", fixed, Real{0.25});
        const Real scale = Real{0.25} / length_of(g, own);
        for (int i = 0; i < k; ++i) {
          const Real wanted = scale * static_cast<Real>(own[at(i)]);
          check(std::fabs(static_cast<Real>(fixed[at(i)]) - wanted) <= Real{1e-12} * std::fabs(wanted),
                "the direction stays");
        }
      }
    }
  }
  Method method = of(MethodId::mean);
  method.length = {bucket_moo::Length::fixed, 1.0};
  const Gramian opposite{2, {1, -1, -1, 1}};
  const auto vanished = solve(method, opposite);
  check(vanished.weights == Vector({0.5, 0.5}) && vanished.solution.status == bucket_moo::Status::fallback,
        "an update that vanishes has no direction");
  const auto cancels = solve(of(MethodId::normalized_mean), Gramian{2, {9, -3, -3, 1}});
  check(std::fabs(cancels.weights[0] - 0.25) < 1e-12 && cancels.solution.status == bucket_moo::Status::fallback,
        "directions that cancel");
}

}  // namespace method_checks
