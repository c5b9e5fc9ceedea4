#define BUCKET_MOO_ISA baseline
#include "kernels/isa/accumulate_rows.hpp"
#include "kernels/isa/combine_rows.hpp"
#include "kernels/isa/gramian_rows.hpp"
#include "kernels/isa/sketch_row.hpp"
