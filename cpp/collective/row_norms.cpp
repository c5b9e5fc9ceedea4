#include "collective/row_norms.hpp"

#include <cstddef>

namespace bucket_moo {

void add_row_squares(GramianKernel kernel, const Rows& rows, std::span<const Section> sections, const ObjectiveMap& map,
                     std::vector<double>& squares) {
  const auto k = static_cast<std::size_t>(map.k);
  const int alone = 0;
  for (const Section& section : sections) {
    const SectionRows of_section(rows, section);
    for (int r = 0; r < rows.count; ++r) {
      if (map.share[r] == 0.0) {
        continue;
      }
      const Rows row{of_section.rows().data + r, 1, section.size, rows.dtype};
      double square = 0.0;
      kernel(row, {&alone, &map.share[r], 1}, &square);
      squares[static_cast<std::size_t>(section.part) * k + static_cast<std::size_t>(map.objective[r])] += square;
    }
  }
}

std::vector<double> squared_shares(std::span<const int> objective, std::span<const double> share, int k) {
  std::vector<double> sums(static_cast<std::size_t>(k));
  for (std::size_t r = 0; r < objective.size(); ++r) {
    sums[static_cast<std::size_t>(objective[r])] += share[r] * share[r];
  }
  return sums;
}

}  // namespace bucket_moo
