// What the race detector remembers of every place in memory.
#ifndef BUCKET_MOO_EMULATION_SHADOW_MEMORY_HPP
#define BUCKET_MOO_EMULATION_SHADOW_MEMORY_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>

namespace bucket_moo::emulation {

/// An access, by when it happened; see Clock on segments.
struct Access {
  std::uint32_t segment = 0;  ///< 0: none
  std::uint32_t code = 0;     ///< address behind the instruction, in the program
  std::uint16_t thread = 0;
};

/// Of several readers two are enough to find any write that races with one of them; see Detector::remember().
struct Cell {
  Access write;
  Access read[2];
  Access atomic[2];
};

/// Cells by address. A page's cells are as large as the first access to it since the launch began, until a smaller one
/// comes.
class ShadowMemory {
 public:
  /// Calls `visit(cell)` for each cell of [address, address + size). \param launch the first segment of the launch
  template <class Visit>
  void visit(std::uintptr_t address, std::size_t size, std::uint32_t launch, Visit visit) {
    const int largest = __builtin_ctzll(address | size | kLargestCell);
    while (size > 0) {
      Page& page = page_of(address >> kPageBits);
      if (page.launch != launch) {
        page.reset(largest);
        page.launch = launch;
      } else if (page.log2_cell > largest) {
        page.split(largest);
      }
      const std::uintptr_t offset = address & (kPageBytes - 1);
      const std::size_t here = size < kPageBytes - offset ? size : kPageBytes - offset;
      const std::size_t end = (offset + here) >> page.log2_cell;
      for (std::size_t c = offset >> page.log2_cell; c < end; ++c) visit(page.cells[c]);
      address += here;
      size -= here;
    }
  }

 private:
  static constexpr int kPageBits = 12;
  static constexpr std::size_t kPageBytes = std::size_t{1} << kPageBits;
  static constexpr std::size_t kLargestCell = 16;
  static constexpr std::size_t kRecent = 4096;

  struct Page {
    std::uint32_t launch = 0;
    int log2_cell = 0;
    std::size_t capacity = 0;
    std::unique_ptr<Cell[]> cells;

    /// Cells may be left from an earlier launch: older than any access of this one, so nothing races with them.
    void reset(int log2) {
      log2_cell = log2;
      if (capacity < kPageBytes >> log2) {
        capacity = kPageBytes >> log2;
        cells = std::make_unique<Cell[]>(capacity);
      }
    }

    void split(int log2) {
      const std::unique_ptr<Cell[]> old = std::move(cells);
      const int each = log2_cell - log2;
      const std::size_t count = kPageBytes >> log2;
      cells = std::make_unique_for_overwrite<Cell[]>(count);
      for (std::size_t c = 0; c < count; ++c) cells[c] = old[c >> each];
      capacity = count;
      log2_cell = log2;
    }
  };

  Page& page_of(std::uintptr_t number) {
    Recent& recent = recent_[number % kRecent];
    if (recent.number != number) recent = {number, &pages_[number]};
    return *recent.page;
  }

  struct Recent {
    std::uintptr_t number = 0;
    Page* page = nullptr;
  };
  std::unordered_map<std::uintptr_t, Page> pages_;
  std::unique_ptr<Recent[]> recent_ = std::make_unique<Recent[]>(kRecent);
};

}  // namespace bucket_moo::emulation

#endif  // BUCKET_MOO_EMULATION_SHADOW_MEMORY_HPP
