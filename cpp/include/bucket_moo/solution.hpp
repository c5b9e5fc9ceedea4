// What a solver says about its answer, beside the weights.
#ifndef BUCKET_MOO_SOLUTION_HPP
#define BUCKET_MOO_SOLUTION_HPP

namespace bucket_moo {

/// How a solve ended. None of these is an error: the weights are usable in every case.
enum class Status : int {
  ok,             ///< solved
  nonfinite,      ///< the Gramian has a NaN or an Inf: the weights are the plain mean over all K objectives
  inactive,       ///< every gradient is zero: all weights are 0
  not_converged,  ///< the certificate is above its tolerance; the weights are the best found
  fallback,       ///< what the method asks for does not exist here: the weights are the substitute its file names
};

/// The outcome of one solve.
struct Solution {
  Status status = Status::ok;
  int iterations = 0;     ///< changes of the support, or Newton steps; 0 for direct methods
  int active = 0;         ///< objectives with a non-zero gradient
  double residual = 0.0;  ///< the method's relative certificate; 0 for direct methods, see each method's file
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_SOLUTION_HPP
