// What the bindings include of torch, parsed once for all of them (cmake/torch.cmake). Files include what they use all
// the same.
#pragma once

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/pybind.h>

#include "torch_types/torch_headers.hpp"
