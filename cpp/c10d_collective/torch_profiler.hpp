// torch's profiler for the stages of the collective.
#pragma once

namespace bucket_moo {

/// Shows the stages to torch's profiler, as user scopes, from now on.
void show_stages_to_torch() noexcept;

}  // namespace bucket_moo
