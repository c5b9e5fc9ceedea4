#include "kernels/rows.hpp"

namespace bucket_moo {

std::size_t element_size(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return 4;
    case DType::bfloat16:
    case DType::float16:
      return 2;
    case DType::float64:
      return 8;
  }
  return 0;
}

}  // namespace bucket_moo
