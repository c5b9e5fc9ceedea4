// DDP's gradient buckets as reductions of an engine.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <utility>
#include <vector>

#include "engine/engine.hpp"
#include "hooks/first_pass.hpp"
#include "hooks/kept_gradients.hpp"
#include "hooks/left_alone.hpp"
#include "hooks/parameter_names.hpp"

namespace bucket_moo {

/// Reduces the buckets that DDP hands to a communication hook, for one engine. A backward pass that is reduced is a
/// pass: it begins with the bucket of index 0 and ends with DDP's last one. DDP hands over one bucket at a time.
class DdpBuckets {
 public:
  /// `bucket_cap`: bytes up to which DDP fills its buckets. Larger ones are exchanged in pieces, so that the single
  /// bucket of DDP's first iteration does not take scratch memory for the whole model.
  DdpBuckets(std::shared_ptr<Engine> engine, std::int64_t bucket_cap);

  Engine& engine() const { return *engine_; }

  /// Gives parameters names; see ParameterNames.
  void name_parameters(const std::vector<std::pair<std::string, at::Tensor>>& named) { names_.set(named); }

  /// Reduces a bucket in place. Errors, and `result`: as for Engine::reduce().
  FuturePtr run(c10d::GradBucket& bucket, c10::IValue result = {});

  /// Passes of an open step that the engine does not know of yet.
  int kept_passes() const { return first_pass_.is_kept() && !gives_up_ ? 1 : 0; }
  /// As Engine::discard_open_steps(): a pass that is going on ends as it would have.
  void discard_kept_passes() { gives_up_ = true; }

 private:
  void begin_pass();
  FuturePtr keep(const Reduction& reduction, c10::IValue result);
  void bring_first_pass(const Reduction& reduction);
  std::int64_t tile_limit(const std::vector<at::Tensor>& parameters) const;
  void check_kept_gradients(const Reduction& reduction, const std::vector<at::Tensor>& parameters, bool starts_pass);

  const std::shared_ptr<Engine> engine_;
  const std::int64_t bucket_cap_;
  ParameterNames names_;
  KeptGradients kept_gradients_;
  FirstPass first_pass_;
  LeftAlone left_alone_;
  bool keeps_this_pass_ = false;
  bool has_begun_ = false;  // a pass
  bool gives_up_ = false;   // before the next pass: what was kept
};

}  // namespace bucket_moo
