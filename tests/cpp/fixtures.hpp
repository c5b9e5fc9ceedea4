// What the tests of the core share: Gramians of every family we know to be hard, certificates in long double.
#ifndef BUCKET_MOO_TESTS_FIXTURES_HPP
#define BUCKET_MOO_TESTS_FIXTURES_HPP

#include <algorithm>
#include <bucket_moo/solve.hpp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace fixtures {

using bucket_moo::MethodId;
using bucket_moo::RandomKey;
using bucket_moo::Solution;
using bucket_moo::Status;
using Real = long double;
using Vector = std::vector<double>;

inline int failures = 0;
inline long checks = 0;

inline void check(bool holds, const std::string& what) {
  ++checks;
  if (holds) return;
  if (++failures <= 25) std::printf("FAILED %s\n", what.c_str());
}

/// The worst value of a measured quantity, by name.
class Worst {
 public:
  void add(const std::string& name, double value) {
    auto [at, fresh] = values_.try_emplace(name, value);
    if (!fresh && !(value <= at->second)) at->second = value;
  }
  void print() const {
    for (const auto& [name, value] : values_) std::printf("  %-44s %.2e\n", name.c_str(), value);
  }

 private:
  std::map<std::string, double> values_;
};

// ---------------------------------------------------------------------------------------------------------- problems

struct Gramian {
  int k;
  Vector entries;
  double operator()(int i, int j) const { return entries[static_cast<std::size_t>(i * k + j)]; }
  double& operator()(int i, int j) { return entries[static_cast<std::size_t>(i * k + j)]; }
};

/// K gradients of n elements.
struct Gradients {
  int k;
  int n;
  Vector entries;
  Gradients(int rows, int columns) : k(rows), n(columns), entries(static_cast<std::size_t>(rows * columns)) {}
  double& at(int i, int x) { return entries[static_cast<std::size_t>(i * n + x)]; }
  double at(int i, int x) const { return entries[static_cast<std::size_t>(i * n + x)]; }
};

inline Gramian gramian(const Gradients& g) {
  Gramian result{g.k, Vector(static_cast<std::size_t>(g.k * g.k))};
  for (int i = 0; i < g.k; ++i) {
    for (int j = 0; j < g.k; ++j) {
      Real sum = 0;
      for (int x = 0; x < g.n; ++x) sum += static_cast<Real>(g.at(i, x)) * static_cast<Real>(g.at(j, x));
      result(i, j) = static_cast<double>(sum);
    }
  }
  return result;
}

using Random = std::mt19937_64;

inline double normal(Random& random) { return std::normal_distribution<double>()(random); }

inline Gradients gaussian(Random& random, int k, int n) {
  Gradients g(k, n);
  for (double& x : g.entries) x = normal(random);
  return g;
}

/// Rows of an orthonormal basis, by Gram-Schmidt twice.
inline Gradients orthonormal(Random& random, int k, int n) {
  Gradients q = gaussian(random, k, n);
  for (int i = 0; i < k; ++i) {
    for (int pass = 0; pass < 2; ++pass) {
      for (int j = 0; j < i; ++j) {
        double product = 0;
        for (int x = 0; x < n; ++x) product += q.at(i, x) * q.at(j, x);
        for (int x = 0; x < n; ++x) q.at(i, x) -= product * q.at(j, x);
      }
    }
    double square = 0;
    for (int x = 0; x < n; ++x) square += q.at(i, x) * q.at(i, x);
    for (int x = 0; x < n; ++x) q.at(i, x) /= std::sqrt(square);
  }
  return q;
}

/// Condition number of the Gramian; its eigenvalues are spread evenly in the logarithm.
inline Gradients conditioned(Random& random, int k, double condition) {
  const Gradients u = orthonormal(random, k, k);
  Gradients g(k, k);
  for (int i = 0; i < k; ++i) {
    for (int x = 0; x < k; ++x) {
      const double position = k > 1 ? static_cast<double>(x) / (k - 1) : 0.0;
      g.at(i, x) = u.at(x, i) * std::pow(condition, -0.5 * position);  // G = U diag U^T
    }
  }
  return g;
}

inline void scale_rows_over(Random& random, Gradients& g, double decades) {
  for (int i = 0; i < g.k; ++i) {
    const double factor = std::pow(10.0, decades * (std::uniform_real_distribution<double>()(random) - 0.5));
    for (int x = 0; x < g.n; ++x) g.at(i, x) *= factor;
  }
}

inline void copy_row(Gradients& g, int from, int to, double factor = 1.0) {
  for (int x = 0; x < g.n; ++x) g.at(to, x) = factor * g.at(from, x);
}

/// The last row becomes what makes a positive combination of the first `members` rows vanish.
inline void make_stationary(Random& random, Gradients& g, int members) {
  for (int x = 0; x < g.n; ++x) g.at(g.k - 1, x) = 0.0;
  for (int i = 0; i < members; ++i) {
    const double weight = 0.1 + std::uniform_real_distribution<double>()(random);
    for (int x = 0; x < g.n; ++x) g.at(g.k - 1, x) -= weight * g.at(i, x);
  }
}

struct Family {
  std::string name;
  std::function<Gradients(Random&, int)> make;
  bool unique = true;  // whether the weights are determined well enough to be compared
};

inline std::vector<Family> families() {
  const auto wide = [](int k) { return 2 * k + 3; };
  return {
      {"wishart", [=](Random& r, int k) { return gaussian(r, k, wide(k)); }},
      {"wishart, fewer dimensions than K", [](Random& r, int k) { return gaussian(r, k, std::max(1, k / 3)); }, false},
      {"common component",
       [=](Random& r, int k) {
         Gradients g = gaussian(r, k, wide(k));
         const Gradients common = gaussian(r, 1, wide(k));
         for (int i = 0; i < k; ++i) {
           for (int x = 0; x < g.n; ++x) g.at(i, x) = common.at(0, x) + 0.3 * g.at(i, x);
         }
         return g;
       }},
      {"condition 1e2", [](Random& r, int k) { return conditioned(r, k, 1e2); }},
      {"condition 1e6", [](Random& r, int k) { return conditioned(r, k, 1e6); }},
      {"condition 1e10", [](Random& r, int k) { return conditioned(r, k, 1e10); }, false},
      {"norms over 2 decades",
       [=](Random& r, int k) {
         Gradients g = gaussian(r, k, wide(k));
         scale_rows_over(r, g, 2);
         return g;
       }},
      {"norms over 4 decades",
       [=](Random& r, int k) {
         Gradients g = gaussian(r, k, wide(k));
         scale_rows_over(r, g, 4);
         return g;
       }},
      {"condition 1e10, norms over 4 decades",
       [](Random& r, int k) {
         Gradients g = conditioned(r, k, 1e10);
         scale_rows_over(r, g, 4);
         return g;
       },
       false},
      {"near-duplicates",
       [=](Random& r, int k) {
         Gradients g = gaussian(r, k, wide(k));
         for (int i = 1; i < k; i += 2) {
           copy_row(g, i - 1, i);
           const double distance = std::pow(10.0, -3.0 - 9.0 * std::uniform_real_distribution<double>()(r));
           for (int x = 0; x < g.n; ++x) g.at(i, x) += distance * normal(r);
         }
         return g;
       },
       false},
      {"exact duplicates",
       [=](Random& r, int k) {
         Gradients g = gaussian(r, k, wide(k));
         for (int i = 1; i < k; ++i) {
           if (r() % 2 == 0) copy_row(g, static_cast<int>(r() % static_cast<unsigned>(i)), i);
         }
         return g;
       }},
      {"all equal",
       [=](Random& r, int k) {
         Gradients g = gaussian(r, k, wide(k));
         for (int i = 1; i < k; ++i) copy_row(g, 0, i);
         return g;
       }},
      {"strongly stationary",
       [=](Random& r, int k) {
         Gradients g = gaussian(r, k, wide(k));
         make_stationary(r, g, k - 1);
         return g;
       }},
      {"weakly stationary",
       [=](Random& r, int k) {
         Gradients g = gaussian(r, k, wide(k));
         make_stationary(r, g, (k - 1) / 2);
         return g;
       }},
      {"stationary, norms over 4 decades",
       [=](Random& r, int k) {
         Gradients g = gaussian(r, k, wide(k));
         scale_rows_over(r, g, 4);
         make_stationary(r, g, k - 1);
         return g;
       },
       false},
      {"condition 1e20 and more", [](Random& r, int k) { return conditioned(r, k, 1e22); }, false},
      {"norms over 8 decades",
       [=](Random& r, int k) {
         Gradients g = gaussian(r, k, wide(k));
         scale_rows_over(r, g, 8);
         return g;
       }},
      {"small integers: ties",
       [](Random& r, int k) {
         Gradients g(k, 3);
         for (double& x : g.entries) x = static_cast<double>(r() % 3) - 1.0;
         return g;
       },
       false},
      {"zero rows",
       [=](Random& r, int k) {
         Gradients g = gaussian(r, k, wide(k));
         for (int i = 0; i < k; ++i) {
           if (r() % 3 == 0) copy_row(g, i, i, 0.0);
         }
         return g;
       }},
      {"rank one, signs agree",
       [=](Random& r, int k) {
         Gradients g = gaussian(r, k, wide(k));
         for (int i = 1; i < k; ++i) copy_row(g, 0, i, 0.1 + std::fabs(normal(r)));
         return g;
       }},
      {"rank one, signs differ",
       [=](Random& r, int k) {
         Gradients g = gaussian(r, k, wide(k));
         for (int i = 1; i < k; ++i) copy_row(g, 0, i, normal(r));
         return g;
       },
       false},
  };
}

/// What a Gramian accumulated in float32 looks like: slightly indefinite.
inline Gramian rounded(const Gramian& g) {
  Gramian result = g;
  for (double& x : result.entries) x = static_cast<double>(static_cast<float>(x));
  return result;
}

// --------------------------------------------------------------------------------------------------------- solutions

struct Answer {
  Solution solution;
  Vector weights;
};

/// Compiled once, for it has all methods. Checks too that the Gramian is only read.
Answer solve(const bucket_moo::Method& method, const Gramian& g, RandomKey key = {}, double* state = nullptr);

inline std::vector<Real> times(const Gramian& g, const std::vector<Real>& w) {
  std::vector<Real> product(w.size());
  for (int i = 0; i < g.k; ++i) {
    for (int j = 0; j < g.k; ++j)
      product[static_cast<std::size_t>(i)] += static_cast<Real>(g(i, j)) * w[static_cast<std::size_t>(j)];
  }
  return product;
}

inline std::vector<Real> extended(const Vector& w) { return {w.begin(), w.end()}; }

inline Real inner(const std::vector<Real>& a, const std::vector<Real>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), Real{0});
}

inline std::vector<int> active(const Gramian& g) {
  std::vector<int> result;
  for (int i = 0; i < g.k; ++i) {
    if (g(i, i) > 0) result.push_back(i);
  }
  return result;
}

inline Real mean_diagonal(const Gramian& g) {
  Real trace = 0;
  for (int i : active(g)) trace += static_cast<Real>(g(i, i));
  return trace / static_cast<Real>(active(g).size());
}

inline double largest_difference(const Vector& a, const Vector& b) {
  double result = 0;
  for (std::size_t i = 0; i < a.size(); ++i) result = std::max(result, std::fabs(a[i] - b[i]));
  return result;
}

inline Gramian permuted(const Gramian& g, const std::vector<int>& order) {
  Gramian result = g;
  for (int i = 0; i < g.k; ++i) {
    for (int j = 0; j < g.k; ++j)
      result(i, j) = g(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(j)]);
  }
  return result;
}

inline Gramian scaled(const Gramian& g, double factor_of_gradients) {
  Gramian result = g;
  for (double& x : result.entries) x *= factor_of_gradients * factor_of_gradients;
  return result;
}

inline std::string label(const std::string& what, const std::string& family, int k) {
  return what + " [" + family + ", K=" + std::to_string(k) + "]";
}

inline const std::vector<int> kSizes{1, 2, 3, 5, 8, 16, 33, 64};

}  // namespace fixtures

#endif  // BUCKET_MOO_TESTS_FIXTURES_HPP
