// The parts of the extension module.
#pragma once

#include <pybind11/pybind11.h>

namespace bucket_moo {

/// A method with its options.
void bind_methods(pybind11::module_& module);

/// BucketMooState and the DDP hook.
void bind_state(pybind11::module_& module);

}  // namespace bucket_moo
