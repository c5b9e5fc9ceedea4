// Names for stretches of host code in Nsight Systems, which shows the kernels they enqueue under them.
#ifndef BUCKET_MOO_CUDA_NVTX_RANGE_CUH
#define BUCKET_MOO_CUDA_NVTX_RANGE_CUH

#include <nvtx3/nvToolsExt.h>

namespace bucket_moo::cuda {

/// An NVTX range that lasts as long as its scope. Costs nanoseconds where no tool listens.
class NvtxRange {
 public:
  explicit NvtxRange(const char* name) { nvtxRangePushA(name); }
  ~NvtxRange() { nvtxRangePop(); }
  NvtxRange(const NvtxRange&) = delete;
  NvtxRange& operator=(const NvtxRange&) = delete;
};

}  // namespace bucket_moo::cuda

#endif  // BUCKET_MOO_CUDA_NVTX_RANGE_CUH
