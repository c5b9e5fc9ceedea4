// What was asked of the emulated device, by kind: for budgets of operations.
#ifndef BUCKET_MOO_EMULATION_OPERATIONS_HPP
#define BUCKET_MOO_EMULATION_OPERATIONS_HPP

namespace bucket_moo::emulation {

/// How often something was asked for. What is captured into a graph counts when it is captured, not at a replay.
struct Operations {
  long kernels = 0;
  long copies = 0;
  long memsets = 0;
  long collectives = 0;  ///< of the stand-in for NCCL
  long event_records = 0;
  long event_waits = 0;  ///< of streams
  long graph_launches = 0;
  long on_legacy_stream = 0;  ///< work for it: it waits for every blocking stream, and they for it
  long synchronisations = 0;  ///< calls in which the host waits for the device
  long allocations = 0;       ///< and releases: calls that a GPU may synchronise for
};

/// So far, in this process.
Operations operations();

/// Counts one more. \param kind a member of Operations; nullptr: none
void count(long Operations::* kind);

}  // namespace bucket_moo::emulation

#endif  // BUCKET_MOO_EMULATION_OPERATIONS_HPP
