// What a method is given: the active objectives of one bucket.
#ifndef BUCKET_MOO_PROBLEM_HPP
#define BUCKET_MOO_PROBLEM_HPP

#include <bucket_moo/random.hpp>

namespace bucket_moo {

struct Problem {
  RandomKey key;         ///< seed, step, bucket
  int all;               ///< objectives, active or not
  const int* slot;       ///< [all] place of each objective among the active ones, or -1
  int k;                 ///< active objectives, >= 1
  const int* objective;  ///< [k] which objective each active one is, ascending
  double* gram;          ///< [k, k] symmetric, positive diagonal, of the active objectives, times `unit`
  double unit;           ///< a power of two that brings the mean diagonal into [1/2, 1)
};

}  // namespace bucket_moo

#endif  // BUCKET_MOO_PROBLEM_HPP
