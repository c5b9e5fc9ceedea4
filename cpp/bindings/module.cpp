// The extension module `bucket_moo_ext._C`.
#include <torch/csrc/utils/pybind.h>

#include "bindings/bindings.hpp"
#include "bucket_moo/limits.hpp"
#include "bucket_moo/sketch.hpp"
#include "collective/objectives.hpp"

namespace {

// pybind11 keeps one type registry per internals id; with another id than torch's own, ProcessGroup, Reducer and
// GradBucket would compile and then be refused at run time.
constexpr bool same_text(const char* a, const char* b) {
  for (; *a != '\0' && *a == *b; ++a, ++b) {
  }
  return *a == *b;
}
static_assert(same_text(PYBIND11_INTERNALS_ID, BUCKET_MOO_TORCH_PYBIND11_ID),
              "compiled with other pybind11 headers than the ones torch bundles: remove them from the include path");

pybind11::dict build_info() {
  pybind11::dict info;
  info["version"] = BUCKET_MOO_VERSION;
  info["torch"] = BUCKET_MOO_TORCH_VERSION;
  info["compiler"] = BUCKET_MOO_COMPILER;
  info["cuda"] = BUCKET_MOO_CUDA != 0 && BUCKET_MOO_EMULATED_CUDA == 0;
  info["cuda_compiler"] = BUCKET_MOO_CUDA_COMPILER;
  info["cuda_architectures"] = BUCKET_MOO_CUDA_ARCHITECTURES;
  info["max_objectives"] = bucket_moo::kMaxObjectives;
  info["max_objective_name_bytes"] = bucket_moo::kMaxObjectiveName;
  info["min_sketch_width"] = bucket_moo::kMinSketchWidth;
  info["max_sketch_width"] = bucket_moo::kMaxSketchWidth;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native part of bucket_moo_ext; use the functions of the package instead.";
  module.def("build_info", &build_info);
  bucket_moo::bind_methods(module);
  bucket_moo::bind_engine(module);
  bucket_moo::bind_ddp(module);
}
