// No tool listens on the CPU.
#ifndef BUCKET_MOO_EMULATION_NVTX_H
#define BUCKET_MOO_EMULATION_NVTX_H

inline int nvtxRangePushA(const char*) { return 0; }
inline int nvtxRangePop() { return 0; }

#endif  // BUCKET_MOO_EMULATION_NVTX_H
