// The parts of the extension module.
#pragma once

#include <pybind11/pybind11.h>

namespace bucket_moo {

/// A method with its options.
void bind_methods(pybind11::module_& module);

/// The engine, with direct calls of the collectives.
void bind_engine(pybind11::module_& module);

/// What reduces DDP's buckets. After bind_engine().
void bind_ddp(pybind11::module_& module);

}  // namespace bucket_moo
