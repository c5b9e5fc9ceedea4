#include "hooks/method_config.hpp"

#include <c10/util/Exception.h>

#include <bucket_moo/limits.hpp>
#include <cmath>
#include <initializer_list>
#include <string>
#include <utility>

namespace bucket_moo {
namespace {

/// Whether `small` is `title` in small letters.
bool matches(std::string_view small, std::string_view title) {
  if (small.size() != title.size()) return false;
  for (std::size_t i = 0; i < small.size(); ++i) {
    const bool capital = title[i] >= 'A' && title[i] <= 'Z';
    if (small[i] != (capital ? static_cast<char>(title[i] - 'A' + 'a') : title[i])) return false;
  }
  return true;
}

MethodId method_id(std::string_view name) {
  for (int i = 0; i < kMethods; ++i) {
    if (matches(name, kMethodNames[i])) return static_cast<MethodId>(i);
  }
  TORCH_CHECK_VALUE(false, "bucket_moo_ext: method '", name,
                    "' is unknown; available are the names of the method classes in small letters");
}

/// Takes a method's options one by one and, at the end, refuses those that it did not ask for.
class OptionReader {
 public:
  OptionReader(const MethodOptions& options, const char* title) : options_(options), title_(title) {}

  /// The next number; `fallback` where none are given.
  template <class Allowed>
  double number(const char* name, double fallback, const std::string& allowed, Allowed is_allowed) {
    const std::size_t place = numbers_++;
    if (place >= options_.numbers.size()) return fallback;
    const double value = options_.numbers[place];
    TORCH_CHECK_VALUE(is_allowed(value), "bucket_moo_ext: ", title_, "(", name, "=", value, "): ", name, " must be ",
                      allowed);
    return value;
  }

  int integer(const char* name, int fallback, int least) {
    constexpr double kLimit = 2147483648.0;  // 2^31
    const auto allowed = [least](double value) {
      return value >= least && value < kLimit && value == std::floor(value);
    };
    return static_cast<int>(number(name, fallback, "an integer >= " + std::to_string(least) + " and < 2**31", allowed));
  }

  /// The word's value; the first one where none is given.
  template <class Value>
  Value mode(const char* name, std::initializer_list<std::pair<const char*, Value>> values) {
    takes_mode_ = true;
    if (options_.mode.empty()) return values.begin()->second;
    std::string known;
    for (const auto& [word, value] : values) {
      if (options_.mode == word) return value;
      known += (known.empty() ? "'" : " or '") + std::string(word) + "'";
    }
    TORCH_CHECK_VALUE(false, "bucket_moo_ext: ", title_, "(", name, "='", options_.mode, "'): ", name, " must be ",
                      known);
  }

  std::vector<double> preference(const char* name = "preference") {
    takes_preference_ = true;
    double sum = 0.0;
    for (const double share : options_.preference) {
      TORCH_CHECK_VALUE(share >= 0.0, "bucket_moo_ext: ", title_, "(", name, "=...) must be >= 0; got ", share);
      sum += share;
    }
    TORCH_CHECK_VALUE(options_.preference.empty() || (sum > 0.0 && sum <= kLargest), "bucket_moo_ext: ", title_, "(",
                      name, "=...) must have a positive, finite sum; got ", sum);
    return options_.preference.vec();
  }

  std::vector<int> permutation() {
    takes_permutation_ = true;
    const auto size = static_cast<std::int64_t>(options_.permutation.size());
    std::int64_t k = 0;
    while (k < kMaxObjectives && k * k < size) ++k;
    TORCH_CHECK_VALUE(k * k == size, "bucket_moo_ext: ", title_,
                      "(permutation=...) must be K rows of K <= ", kMaxObjectives, "; got ", size, " numbers");
    std::vector<int> orders(options_.permutation.size());
    for (std::int64_t i = 0; i < k; ++i) {
      std::vector<bool> seen(static_cast<std::size_t>(k));
      for (std::int64_t place = i * k; place < (i + 1) * k; ++place) {
        const std::int64_t j = options_.permutation[static_cast<std::size_t>(place)];
        TORCH_CHECK_VALUE(j >= 0 && j < k && !seen[static_cast<std::size_t>(j)], "bucket_moo_ext: ", title_,
                          "(permutation=...): every row must be a permutation of 0..", k - 1, "; row ", i, " is not");
        seen[static_cast<std::size_t>(j)] = true;
        orders[static_cast<std::size_t>(place)] = static_cast<int>(j);
      }
    }
    return orders;
  }

  void finish() const {
    TORCH_CHECK_VALUE(options_.numbers.empty() || options_.numbers.size() == numbers_, "bucket_moo_ext: ", title_,
                      " takes ", numbers_, " numbers or none; got ", options_.numbers.size());
    TORCH_CHECK_VALUE(takes_mode_ || options_.mode.empty(), "bucket_moo_ext: ", title_, " takes no mode; got '",
                      options_.mode, "'");
    TORCH_CHECK_VALUE(takes_preference_ || options_.preference.empty(), "bucket_moo_ext: ", title_,
                      " takes no preference; got ", options_.preference.size(), " numbers");
    TORCH_CHECK_VALUE(takes_permutation_ || options_.permutation.empty(), "bucket_moo_ext: ", title_,
                      " takes no permutation; got ", options_.permutation.size(), " numbers");
  }

 private:
  const MethodOptions& options_;
  const char* title_;
  std::size_t numbers_ = 0;  // asked for
  bool takes_mode_ = false;
  bool takes_preference_ = false;
  bool takes_permutation_ = false;
};

}  // namespace

MethodConfig::MethodConfig(const MethodOptions& options) {
  method_.id = method_id(options.name);
  OptionReader reader(options, kMethodNames[static_cast<int>(method_.id)]);
  switch (method_.id) {
    case MethodId::mean:
      preference_ = reader.preference("weights");
      break;
    case MethodId::upgrad:
    case MethodId::dualproj:
    case MethodId::config:
      preference_ = reader.preference();
      break;
    case MethodId::mgda:
      method_.mgda.normalize = reader.mode<Normalize>("normalize", {{"none", Normalize::none}, {"l2", Normalize::l2}});
      break;
    case MethodId::cagrad:
      method_.cagrad.c = reader.number("c", method_.cagrad.c, "a finite number >= 0",
                                       [](double c) { return c >= 0.0 && c <= kLargest; });
      method_.cagrad.rescale =
          reader.number("rescale", 0.0, "0 or 1", [](double flag) { return flag == 0.0 || flag == 1.0; }) != 0.0;
      break;
    case MethodId::pcgrad:
      method_.pcgrad.reduction =
          reader.mode<Reduction>("reduction", {{"mean", Reduction::mean}, {"sum", Reduction::sum}});
      permutation_ = reader.permutation();
      break;
    case MethodId::imtlg:
    case MethodId::adasum:
      break;
    case MethodId::aligned_mtl:
      method_.aligned_mtl.scale_mode = reader.mode<ScaleMode>(
          "scale_mode", {{"min", ScaleMode::min}, {"median", ScaleMode::median}, {"mean", ScaleMode::mean}});
      preference_ = reader.preference();
      break;
    case MethodId::nash_mtl:
      method_.nash_mtl.max_norm = reader.number("max_norm", method_.nash_mtl.max_norm, "a finite number >= 0",
                                                [](double norm) { return norm >= 0.0 && norm <= kLargest; });
      break;
    case MethodId::fairgrad:
      method_.fairgrad.alpha = reader.number("alpha", method_.fairgrad.alpha, "a finite number > 0",
                                             [](double alpha) { return alpha > 0.0 && alpha <= kLargest; });
      break;
    case MethodId::gradvac:
      method_.gradvac.beta = reader.number("beta", method_.gradvac.beta, "a number from 0 to 1",
                                           [](double beta) { return beta >= 0.0 && beta <= 1.0; });
      permutation_ = reader.permutation();
      break;
    case MethodId::krum:
      method_.krum.n_byzantine = reader.integer("n_byzantine", method_.krum.n_byzantine, 0);
      method_.krum.n_selected = reader.integer("n_selected", method_.krum.n_selected, 1);
      break;
  }
  reader.finish();
  while (rows_ * rows_ < permutation_.size()) ++rows_;
}

MethodConfig MethodConfig::smoothed(double alpha) const {
  MethodConfig config = *this;
  config.method_.smoothing.alpha = alpha;
  return config;
}

Method MethodConfig::method(const double* preference, const int* permutation) const {
  // Only the options of the method itself are read, so all may point to the same place.
  const double* const shares = preference_.empty() ? nullptr : preference;
  const int* const orders = permutation_.empty() ? nullptr : permutation;
  Method method = method_;
  method.mean.weights = shares;
  method.upgrad.preference = shares;
  method.dualproj.preference = shares;
  method.aligned_mtl.preference = shares;
  method.config.preference = shares;
  method.pcgrad.permutation = orders;
  method.gradvac.permutation = orders;
  return method;
}

int MethodConfig::expected_objectives() const {
  return static_cast<int>(preference_.empty() ? rows_ : preference_.size());
}

std::string MethodConfig::mismatch(int k) const {
  const auto size = static_cast<std::size_t>(k);
  const char* const title = kMethodNames[static_cast<int>(method_.id)];
  if (!preference_.empty() && preference_.size() != size) {
    return c10::str("bucket_moo_ext: ", title, method_.id == MethodId::mean ? "(weights" : "(preference",
                    "=...) holds ", preference_.size(), " weights, but there are ", k, " objectives");
  }
  if (rows_ != 0 && rows_ != size) {
    return c10::str("bucket_moo_ext: ", title, "(permutation=...) is for ", rows_, " objectives, but there are ", k);
  }
  return {};
}

void MethodConfig::check(int k) const {
  const std::string wrong = mismatch(k);
  TORCH_CHECK_VALUE(wrong.empty(), wrong);
}

}  // namespace bucket_moo
