// A method with its options, owning what the core's plain-data Method only points to.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bucket_moo/method.hpp"

namespace bucket_moo {

/// A method by name and plain values, as Python, the operators and the C interface hand it over. What is empty has the
/// method's default; what a method has no use for must be empty.
/// visit_options() in a method's file says which options it has. Numbers come in the order there, a flag as 0 or 1; a
/// max_norm of 0 is no bound, and Mean's `weights` are a preference.
struct MethodOptions {
  std::string_view name;                      ///< one of small_method_names()
  std::span<const double> numbers;            ///< all of them or none
  std::string_view mode;                      ///< the option that is a word
  std::span<const double> preference;         ///< [K], >= 0, with a positive finite sum
  std::span<const std::int64_t> permutation;  ///< [K, K], every row a permutation of 0, ..., K-1
  std::span<const std::string> objectives{};  ///< [K] of the preferences; empty: in the order of the objectives
};

/// By MethodId: kMethodNames in small letters, as `method=` has them.
std::span<const std::string> small_method_names();

/// What a length is as a number: 0 as the method has it, kMeanLength that of the mean, else the length.
/// Throws std::invalid_argument for another.
LengthOptions length_of(double number);
inline constexpr double kMeanLength = -1.0;

/// Copyable and self-contained; `method()` points into it, so keep it alive and unchanged as long as that is used.
class MethodConfig {
 public:
  /// Throws std::invalid_argument, naming method and option, for what MethodOptions does not allow.
  explicit MethodConfig(const MethodOptions& options);

  /// The same method with its weights averaged over steps, see SmoothingOptions.
  MethodConfig smoothed(double alpha) const;

  /// The same method with its update brought to another length, see LengthOptions.
  MethodConfig rescaled(const LengthOptions& length) const;

  /// Ready for solve() on the host.
  Method method() const { return method(preference_.data(), permutation_.data()); }

  /// The same with copies of preference() and permutation() elsewhere, in device memory say; read only where those are
  /// not empty.
  Method method(const double* preference, const int* permutation) const;

  const std::vector<double>& preference() const { return preference_; }
  const std::vector<int>& permutation() const { return permutation_; }  ///< [K, K]

  /// The preference in the order of these objectives, of which mismatch() finds nothing.
  std::vector<double> preference(std::span<const std::string> objectives) const;

  /// The method's name and every option by name and value, for comparison and for messages.
  std::vector<std::pair<std::string, std::string>> printed() const;

  /// The K that the options were made for; 0: any.
  int expected_objectives() const;

  /// What check() would say; empty if it would not raise.
  std::string mismatch(int k) const;

  /// The same for objectives of these names, which are all that a preference by name must have.
  std::string mismatch(std::span<const std::string> objectives) const;

  /// Throws std::invalid_argument if an option was made for another number of objectives than K.
  void check(int k) const;

 private:
  Method method_;
  const char* preference_name_ = nullptr;  // nullptr: the method has none
  std::vector<double> preference_;
  std::vector<std::string> objectives_;  // of the preference; empty: it goes by order
  std::vector<int> permutation_;
  std::size_t rows_ = 0;  // of the permutation
};

}  // namespace bucket_moo
