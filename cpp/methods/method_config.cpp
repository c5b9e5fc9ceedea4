#include "methods/method_config.hpp"

#include <algorithm>
#include <array>
#include <bucket_moo/limits.hpp>
#include <bucket_moo/method_list.hpp>
#include <cmath>
#include <initializer_list>
#include <iomanip>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "methods/message.hpp"

namespace bucket_moo {
namespace {

constexpr Require require{"bucket_moo_ext: "};

/// `", "` between the names.
std::string join(std::span<const std::string> names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

MethodId method_id(std::string_view name) {
  const std::span<const std::string> names = small_method_names();
  const auto place = std::find(names.begin(), names.end(), name);
  require(place != names.end(), "method '", name,
          "' is unknown; available are the names of the method classes in small letters");
  return static_cast<MethodId>(place - names.begin());
}

/// Takes a method's options one by one, as its visit_options() shows them, and in the end refuses those that it did not
/// ask for. What is not given stays as it is.
class OptionReader {
 public:
  OptionReader(const MethodOptions& options, const char* title) : options_(options), title_(title) {}

  void at_least_zero(const char* name, double& value) {
    number(name, value, "a finite number >= 0", [](double x) { return x >= 0.0 && x <= kLargest; });
  }

  void positive(const char* name, double& value) {
    number(name, value, "a finite number > 0", [](double x) { return x > 0.0 && x <= kLargest; });
  }

  void from_0_to_1(const char* name, double& value) {
    number(name, value, "a number from 0 to 1", [](double x) { return x >= 0.0 && x <= 1.0; });
  }

  void flag(const char* name, bool& value) {
    double given = value ? 1.0 : 0.0;
    number(name, given, "0 or 1", [](double x) { return x == 0.0 || x == 1.0; });
    value = given != 0.0;
  }

  void integer(const char* name, int& value, int least) {
    constexpr double kLimit = 2147483648.0;  // 2^31
    double given = value;
    number(name, given, "an integer >= " + std::to_string(least) + " and < 2**31",
           [least](double x) { return x >= least && x < kLimit && x == std::floor(x); });
    value = static_cast<int>(given);
  }

  template <class Value>
  void word(const char* name, Value& value, std::initializer_list<std::pair<const char*, Value>> words) {
    takes_mode_ = true;
    if (options_.mode.empty()) return;
    std::string known;
    for (const auto& [word, meaning] : words) {
      if (options_.mode == word) {
        value = meaning;
        return;
      }
      known += (known.empty() ? "'" : " or '") + std::string(word) + "'";
    }
    require(false, title_, "(", name, "='", options_.mode, "'): ", name, " must be ", known);
  }

  /// Checks it: the array is set by ArraySetter.
  void preference(const char* name, const double*&) {
    preference_name_ = name;
    double sum = 0.0;
    for (const double share : options_.preference) {
      require(share >= 0.0, title_, "(", name, "=...) must be >= 0; got ", share);
      sum += share;
    }
    require(options_.preference.empty() || (sum > 0.0 && sum <= kLargest), title_, "(", name,
            "=...) must have a positive, finite sum; got ", sum);
  }

  /// As preference().
  void permutation(const int*&) {
    takes_permutation_ = true;
    const auto size = static_cast<std::int64_t>(options_.permutation.size());
    std::int64_t k = 0;
    while (k < kMaxObjectives && k * k < size) ++k;
    require(k * k == size, title_, "(permutation=...) must be K rows of K <= ", kMaxObjectives, "; got ", size,
            " numbers");
    for (std::int64_t i = 0; i < k; ++i) {
      std::vector<bool> seen(static_cast<std::size_t>(k));
      for (std::int64_t place = i * k; place < (i + 1) * k; ++place) {
        const std::int64_t j = options_.permutation[static_cast<std::size_t>(place)];
        require(j >= 0 && j < k && !seen[static_cast<std::size_t>(j)], title_,
                "(permutation=...): every row must be a permutation of 0..", k - 1, "; row ", i, " is not");
        seen[static_cast<std::size_t>(j)] = true;
      }
    }
  }

  /// What the method calls its preference.
  const char* preference_name() const { return preference_name_; }

  void finish() const {
    require(options_.numbers.empty() || options_.numbers.size() == numbers_, title_, " takes ", numbers_,
            " numbers or none; got ", options_.numbers.size());
    require(takes_mode_ || options_.mode.empty(), title_, " takes no mode; got '", options_.mode, "'");
    require(preference_name_ != nullptr || options_.preference.empty(), title_, " takes no preference; got ",
            options_.preference.size(), " numbers");
    require(takes_permutation_ || options_.permutation.empty(), title_, " takes no permutation; got ",
            options_.permutation.size(), " numbers");
  }

 private:
  template <class Allowed>
  void number(const char* name, double& value, const std::string& allowed, Allowed is_allowed) {
    const std::size_t place = numbers_++;
    if (place >= options_.numbers.size()) return;
    value = options_.numbers[place];
    require(is_allowed(value), title_, "(", name, "=", value, "): ", name, " must be ", allowed);
  }

  const MethodOptions& options_;
  const char* title_;
  const char* preference_name_ = nullptr;  // none: not asked for
  std::size_t numbers_ = 0;                // asked for
  bool takes_mode_ = false;
  bool takes_permutation_ = false;
};

/// Lets the options of a method that are arrays point to these.
struct ArraySetter {
  const double* shares;
  const int* orders;

  void at_least_zero(const char*, double&) const {}
  void positive(const char*, double&) const {}
  void from_0_to_1(const char*, double&) const {}
  void flag(const char*, bool&) const {}
  void integer(const char*, int&, int) const {}
  template <class Value>
  void word(const char*, Value&, std::initializer_list<std::pair<const char*, Value>>) const {}
  void preference(const char*, const double*& array) const { array = shares; }
  void permutation(const int*& array) const { array = orders; }
};

/// With all digits, one space between.
template <class Value>
std::string print(std::span<const Value> values) {
  std::ostringstream text;
  text << std::setprecision(std::numeric_limits<double>::max_digits10);
  const char* separator = "";
  for (const Value value : values) {
    text << separator << value;
    separator = " ";
  }
  return text.str();
}

std::string print(double number) { return print(std::span<const double>(&number, 1)); }

/// Prints a method's options that are no arrays.
struct OptionPrinter {
  std::vector<std::pair<std::string, std::string>>& printed;

  void at_least_zero(const char* name, double& value) { printed.emplace_back(name, print(value)); }
  void positive(const char* name, double& value) { printed.emplace_back(name, print(value)); }
  void from_0_to_1(const char* name, double& value) { printed.emplace_back(name, print(value)); }
  void flag(const char* name, bool& value) { printed.emplace_back(name, value ? "true" : "false"); }
  void integer(const char* name, int& value, int) { printed.emplace_back(name, std::to_string(value)); }
  template <class Value>
  void word(const char* name, Value& value, std::initializer_list<std::pair<const char*, Value>> words) {
    for (const auto& [word, meaning] : words) {
      if (meaning == value) printed.emplace_back(name, word);
    }
  }
  void preference(const char*, const double*&) {}
  void permutation(const int*&) {}
};

const char* title_of(const Method& method) { return kMethodNames[static_cast<std::size_t>(method.id)]; }

}  // namespace

std::span<const std::string> small_method_names() {
  static const auto names = [] {
    std::array<std::string, kMethods> small;
    for (std::size_t i = 0; i < small.size(); ++i) {
      for (const char letter : std::string_view(kMethodNames[i])) {
        const bool is_capital = letter >= 'A' && letter <= 'Z';
        small[i] += is_capital ? static_cast<char>(letter - 'A' + 'a') : letter;
      }
    }
    return small;
  }();
  return names;
}

LengthOptions length_of(double number) {
  require(number == kMeanLength || (number >= 0.0 && number <= kLargest), "length must be ", kMeanLength,
          " (the mean's), 0 (as the method has it) or a "
          "finite number > 0; got ",
          number);
  return number == kMeanLength ? LengthOptions{Length::mean}
         : number == 0.0       ? LengthOptions{}
                               : LengthOptions{Length::fixed, number};
}

MethodConfig::MethodConfig(const MethodOptions& options) {
  method_.id = method_id(options.name);
  OptionReader reader(options, title_of(method_));
  Methods::visit(method_.id, [&](auto entry) { entry.visit_options(reader, method_); });
  reader.finish();
  preference_name_ = reader.preference_name();
  preference_.assign(options.preference.begin(), options.preference.end());
  objectives_.assign(options.objectives.begin(), options.objectives.end());
  require(objectives_.empty() || objectives_.size() == preference_.size(), title_of(method_), ": ", objectives_.size(),
          " names of objectives for ", preference_.size(), " preferences");
  permutation_.assign(options.permutation.begin(), options.permutation.end());
  while (rows_ * rows_ < permutation_.size()) ++rows_;
}

MethodConfig MethodConfig::smoothed(double alpha) const {
  MethodConfig config = *this;
  config.method_.smoothing.alpha = alpha;
  return config;
}

MethodConfig MethodConfig::rescaled(const LengthOptions& length) const {
  MethodConfig config = *this;
  config.method_.length = length;
  return config;
}

Method MethodConfig::method(const double* preference, const int* permutation) const {
  Method method = method_;
  const ArraySetter setter{preference_.empty() ? nullptr : preference, permutation_.empty() ? nullptr : permutation};
  Methods::visit(method.id, [&](auto entry) { entry.visit_options(setter, method); });
  return method;
}

std::vector<std::pair<std::string, std::string>> MethodConfig::printed() const {
  Method method = method_;
  std::vector<std::pair<std::string, std::string>> fields{{"method", title_of(method)}};
  OptionPrinter printer{fields};
  Methods::visit(method.id, [&](auto entry) { entry.visit_options(printer, method); });
  if (preference_name_ != nullptr) fields.emplace_back(preference_name_, print(std::span<const double>(preference_)));
  if (!permutation_.empty()) fields.emplace_back("permutation", print(std::span<const int>(permutation_)));
  fields.emplace_back("smoothing", print(method.smoothing.alpha));
  fields.emplace_back("length", method.length.to == Length::own    ? "own"
                                : method.length.to == Length::mean ? "mean"
                                                                   : print(method.length.value));
  return fields;
}

int MethodConfig::expected_objectives() const {
  return static_cast<int>(preference_.empty() ? rows_ : preference_.size());
}

std::string MethodConfig::mismatch(int k) const {
  const auto size = static_cast<std::size_t>(k);
  const char* const title = title_of(method_);
  if (!preference_.empty() && preference_.size() != size) {
    return message("bucket_moo_ext: ", title, "(", preference_name_, "=...) holds ", preference_.size(),
                   " weights, but there are ", k, " objectives");
  }
  if (rows_ != 0 && rows_ != size) {
    return message("bucket_moo_ext: ", title, "(permutation=...) is for ", rows_, " objectives, but there are ", k);
  }
  return {};
}

std::string MethodConfig::mismatch(std::span<const std::string> objectives) const {
  if (objectives_.empty()) {
    return mismatch(static_cast<int>(objectives.size()));
  }
  const auto lacks = [&](const std::string& name, std::span<const std::string> names) {
    return std::find(names.begin(), names.end(), name) == names.end();
  };
  const std::string option = message("bucket_moo_ext: ", title_of(method_), "(", preference_name_, "=...)");
  for (const std::string& name : objectives) {
    if (lacks(name, objectives_)) {
      return message(option, " does not name objective '", name, "', which the step has; it names ", join(objectives_));
    }
  }
  for (const std::string& name : objectives_) {
    if (lacks(name, objectives)) {
      return message(option, " names objective '", name, "', which the step does not have; it has ", join(objectives));
    }
  }
  return {};
}

std::vector<double> MethodConfig::preference(std::span<const std::string> objectives) const {
  std::vector<double> ordered = preference_;
  for (std::size_t k = 0; k < objectives_.size(); ++k) {
    const auto place = std::find(objectives_.begin(), objectives_.end(), objectives[k]) - objectives_.begin();
    ordered[k] = preference_.at(static_cast<std::size_t>(place));
  }
  return ordered;
}

void MethodConfig::check(int k) const {
  const std::string wrong = mismatch(k);
  if (!wrong.empty()) throw std::invalid_argument(wrong);
}

}  // namespace bucket_moo
