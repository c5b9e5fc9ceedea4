// The errors of the layers that know no torch, as torch knows such errors.
#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <stdexcept>

namespace bucket_moo {

/// The exception that is being handled; where that is a std::invalid_argument, a c10::ValueError that says the same:
/// torch hands that on to Python as a ValueError from any of its threads, and the other as a RuntimeError.
inline std::exception_ptr current_torch_exception() {
  try {
    throw;
  } catch (const std::invalid_argument& error) {
    return std::make_exception_ptr(c10::ValueError({__func__, __FILE__, __LINE__}, error.what()));
  } catch (...) {
    return std::current_exception();
  }
}

/// Returns what the function returns, and throws what it throws, as current_torch_exception() has it.
template <class Function>
auto with_torch_errors(const Function& function) {
  try {
    return function();
  } catch (const std::invalid_argument&) {
    std::rethrow_exception(current_torch_exception());
  }
}

}  // namespace bucket_moo
