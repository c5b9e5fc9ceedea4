#pragma once

#include <bucket_moo/sketch.hpp>

#include "kernels/rows.hpp"

/// Internal: the same kernels compiled for several instruction sets. Tests call the variants one by one.
namespace bucket_moo::isa {

struct Variant {
  const char* name;
  bool fused_multiply_add;  ///< the Gramian's bits are the same for all variants that agree in this
  bool (*supported)();      ///< by the processor this runs on
  void (*gramian)(const Rows&, const ObjectiveMap&, double* out);
  void (*combine)(const Rows&, const double* coefficient, ZeroRows, void* out, DType out_dtype);
  void (*accumulate)(const Rows&, const double* coefficient, double decay, ZeroRows, void* sum);
  void (*sketch)(const void* row, std::int64_t n, DType, const SketchMap&, void* out);
};

/// All variants compiled in, slowest first; the first is supported everywhere.
const Variant* variants(int* count);

/// The last one that this processor supports; chosen once.
const Variant& active_variant();

}  // namespace bucket_moo::isa
