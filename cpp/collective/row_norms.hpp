// How long the rows are that objectives' gradients are means of.
#pragma once

#include <span>
#include <vector>

#include "collective/section_rows.hpp"
#include "collective/sections.hpp"
#include "kernels/rows.hpp"

namespace bucket_moo {

/// With these an objective's signal can be told from its noise: for independent rows x_r with shares a_r that add up to
/// 1, |g|^2 - sum |a_r x_r|^2 is on average (1 - sum a_r^2) times the square of the length of what they have in common.
struct RowNorms {
  std::vector<double> squares;  ///< [parts, K] sum over the objective's rows of |share row|^2; empty: not asked for
  std::vector<double> shares;   ///< [K] sum of share^2 over those rows; 1 where it has a single one
};

/// Adds sum |share row|^2 over the sections of each part and the rows of each objective to `squares`, [parts, K].
/// A row of share 0 is not read. `rows` of `map.k` objectives.
void add_row_squares(GramianKernel kernel, const Rows& rows, std::span<const Section> sections, const ObjectiveMap& map,
                     std::vector<double>& squares);

/// Sum of share^2 over the rows of each objective, [K].
std::vector<double> squared_shares(std::span<const int> objective, std::span<const double> share, int k);

}  // namespace bucket_moo
