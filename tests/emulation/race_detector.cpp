#include "race_detector.hpp"

#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>

#include "observer.hpp"
#include "shadow_memory.hpp"

namespace bucket_moo::emulation {
namespace {

constexpr int kWarp = 32;

/// Where the program was loaded: addresses in it less this are those that addr2line knows.
std::uintptr_t load_address() {
  static const std::uintptr_t address = [] {
    std::uintptr_t first = 0;  // the program comes first
    dl_iterate_phdr(
        [](dl_phdr_info* info, std::size_t, void* out) {
          *static_cast<std::uintptr_t*>(out) = info->dlpi_addr;
          return 1;
        },
        &first);
    return first;
  }();
  return address;
}

/// Time, as far as it orders memory. It counts segments: what a warp runs between two of its synchronisations. As warps
/// and blocks run one after another, every block, and every stretch between two barriers of it, is a range of segments.
struct Clock {
  std::uint32_t segment = 0;
  std::uint32_t barrier = 0;  ///< the block's first segment since its last barrier
  std::uint32_t block = 0;    ///< the block's first
  std::uint32_t launch = 0;   ///< the launch's first
};

/// What is known where a thread has reached a fence: what is ordered before that.
struct Point {
  Clock clock;
  std::uint16_t thread = 0;

  bool covers(const Access& access) const {
    if (access.segment < clock.block || access.segment > clock.segment) return false;
    if (access.segment < clock.barrier) return true;
    if (access.thread / kWarp != thread / kWarp) return false;
    return access.segment < clock.segment || access.thread == thread;
  }
};

class Detector;
/// Set while a grid runs, in the OS thread that runs it.
constinit thread_local Detector* running = nullptr;

class Detector final : public Observer {
 public:
  Detector() { set_observer(this); }
  ~Detector() override;

  void grid_begins(const void* kernel, Region shared) override {
    kernel_ = kernel;
    shared_ = shared;
    blocks_.clear();
    released_.clear();
    clock_.launch = clock_.segment + 1;
    running = this;
  }
  void block_begins(unsigned block) override {
    clock_.block = clock_.barrier = ++clock_.segment;
    blocks_.push_back({clock_.segment, block});
    fences_.clear();
    read_.clear();
    acquired_.clear();
    thread_ = 0;
  }
  void thread_runs(int thread, Region stack) override {
    if (thread / kWarp != thread_ / kWarp) ++clock_.segment;
    thread_ = static_cast<std::uint16_t>(thread);
    stack_ = stack;
  }
  void warp_synchronised() override { ++clock_.segment; }
  void block_synchronised() override { clock_.barrier = ++clock_.segment; }
  void thread_fenced() override {
    fences_[thread_] = {clock_, thread_};
    for (const Point& point : read_[thread_]) acquired_.push_back({point, {clock_.segment, 0, thread_}});
    read_[thread_].clear();
  }
  void grid_ends() override {
    running = nullptr;
    if (stop_ && !races_.empty()) end();
  }

  void access(const volatile void* pointer, std::size_t size, AccessKind kind, const void* code) {
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    if (within(address, stack_)) return;
    const Access now{clock_.segment, static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(code) - load_address_),
                     thread_};
    const bool shared = within(address, shared_);
    const std::uint32_t oldest = shared ? clock_.block : clock_.launch;  // what others have of it is not older
    if (kind == AccessKind::atomic) synchronise(address);
    shadow_.visit(address, size, clock_.launch, [&](Cell& cell) { visit(cell, now, kind, oldest, shared); });
  }

  /// Says which races are left, and ends the program.
  [[noreturn]] void end() const;

  std::vector<Race> take() {
    known_.clear();
    return std::exchange(races_, {});
  }

 private:
  static bool within(std::uintptr_t address, const Region& range) {
    return address - reinterpret_cast<std::uintptr_t>(range.begin) < range.bytes;
  }

  static bool same(const Access& a, const Access& b) { return a.segment == b.segment && a.thread == b.thread; }

  /// Whether nothing orders an access before what the running thread does now.
  bool concurrent(const Access& earlier, std::uint32_t oldest) const {
    if (earlier.segment < oldest) return false;
    if (earlier.segment < clock_.block) {
      return std::none_of(acquired_.begin(), acquired_.end(), [&](const Acquired& acquired) {
        return acquired.point.covers(earlier) && !concurrent(acquired.when, oldest);
      });
    }
    if (earlier.segment < clock_.barrier) return false;
    if (earlier.thread / kWarp != thread_ / kWarp) return true;
    return earlier.segment == clock_.segment && earlier.thread != thread_;
  }

  /// An atomic operation hands on what its thread knew at its last fence, and what others have handed on there, to
  /// those who come after it and have a fence behind it.
  void synchronise(std::uintptr_t address) {
    std::vector<Point>& released = released_[address];
    std::vector<Point>& read = read_[thread_];
    read.insert(read.end(), released.begin(), released.end());
    const auto fence = fences_.find(thread_);
    if (fence == fences_.end()) return;
    for (const Acquired& acquired : acquired_) {
      if (fence->second.covers(acquired.when)) released.push_back(acquired.point);
    }
    released.push_back(fence->second);
  }

  void visit(Cell& cell, const Access& now, AccessKind kind, std::uint32_t oldest, bool shared) {
    if (same(cell.write, now)) return;  // whoever came in between has been compared with that
    if (kind == AccessKind::read && same(cell.read[0], now)) return;
    const auto compare = [&](const Access& earlier, AccessKind its_kind) {
      if (concurrent(earlier, oldest)) report(earlier, its_kind, now, kind, shared);
    };
    compare(cell.write, AccessKind::write);
    if (kind != AccessKind::atomic) {
      for (const Access& atomic : cell.atomic) compare(atomic, AccessKind::atomic);
    }
    if (kind != AccessKind::read) {
      for (const Access& read : cell.read) compare(read, AccessKind::read);
    }
    switch (kind) {
      case AccessKind::read:
        return remember(cell.read, now, oldest);
      case AccessKind::atomic:
        return remember(cell.atomic, now, oldest);
      case AccessKind::write:
        cell.write = now;
    }
  }

  /// Takes `now` among two accesses such that whatever comes after races with one of them if it races with any: what is
  /// ordered before `now` has nothing to add to it, and of three that are not, two suffice that are furthest apart.
  void remember(Access (&pair)[2], const Access& now, std::uint32_t oldest) {
    if (!concurrent(pair[0], oldest)) {
      pair[0] = now;
    } else if (!concurrent(pair[1], oldest)) {
      pair[1] = now;
    } else {
      const bool in_block[] = {pair[0].segment >= clock_.block, pair[1].segment >= clock_.block};
      const auto warp_of = [](const Access& access) { return access.thread / kWarp; };
      if (!in_block[0] && !in_block[1]) {
        pair[1] = now;
      } else if (in_block[0] && in_block[1] && warp_of(pair[0]) == warp_of(pair[1])) {
        pair[1] = now;  // of another warp or not, it is as far from the first
      }
    }
  }

  unsigned block_of(const Access& access) const {
    const auto after =
        std::upper_bound(blocks_.begin(), blocks_.end(), access.segment,
                         [](std::uint32_t segment, const Block& block) { return segment < block.first; });
    return (after - 1)->number;
  }

  void report(const Access& earlier, AccessKind its_kind, const Access& now, AccessKind kind, bool shared) {
    if (!known_.insert({earlier.code, now.code}).second) return;
    const auto describe = [this](const Access& access, AccessKind what) {
      return RacingAccess{what, block_of(access), access.thread, access.code};
    };
    races_.push_back({kernel_, shared, describe(earlier, its_kind), describe(now, kind)});
  }

  struct Block {
    std::uint32_t first;  ///< segment
    unsigned number;
  };

  struct Acquired {
    Point point;
    Access when;  ///< in the running block
  };

  Clock clock_;
  std::uint16_t thread_ = 0;
  std::map<std::uint16_t, Point> fences_;                            ///< the last of each thread of the block
  std::map<std::uint16_t, std::vector<Point>> read_;                 ///< by its atomic operations since then
  std::vector<Acquired> acquired_;                                   ///< by the block's fences
  std::unordered_map<std::uintptr_t, std::vector<Point>> released_;  ///< of the launch, by address
  Region stack_;                                                     ///< of the running thread
  std::uintptr_t load_address_ = load_address();
  bool stop_ = std::getenv("BUCKET_MOO_STOP_AT_RACE") != nullptr;
  const void* kernel_ = nullptr;
  Region shared_;
  std::vector<Block> blocks_;  ///< of the launch, as they ran
  ShadowMemory shadow_;
  std::set<std::pair<std::uint32_t, std::uint32_t>> known_;
  std::vector<Race> races_;
};

/// "function at file:line" for an address in the program, with what it was inlined into.
std::string place_of(std::uintptr_t address) {
  char command[128];
  std::snprintf(command, sizeof(command), "addr2line -Cfpie /proc/%d/exe %#zx", static_cast<int>(getpid()),
                static_cast<std::size_t>(address));
  std::string place;
  if (std::FILE* const pipe = popen(command, "r"); pipe != nullptr) {
    char buffer[512];
    while (std::fgets(buffer, sizeof(buffer), pipe) != nullptr) place += buffer;
    if (pclose(pipe) != 0) place.clear();
  }
  while (!place.empty() && place.back() == '\n') place.pop_back();
  return place.empty() ? "address " + std::to_string(address) + " (addr2line failed)" : place;
}

void print(const Race& race) {
  const auto print_access = [](const char* when, const RacingAccess& access) {
    constexpr const char* kNames[] = {"read", "write", "atomic operation"};
    // The instruction is before the address it returns to.
    std::fprintf(stderr, "  %s: %s by thread %d of block %u\n    %s\n", when, kNames[static_cast<int>(access.kind)],
                 access.thread, access.block, place_of(access.code - 1).c_str());
  };
  std::fprintf(stderr, "RACE in %s memory\n  kernel: %s\n", race.shared ? "shared" : "global",
               place_of(reinterpret_cast<std::uintptr_t>(race.kernel) - load_address()).c_str());
  print_access("earlier", race.earlier);
  print_access("later", race.later);
}

Detector& detector() {
  static Detector instance;
  return instance;
}

Detector::~Detector() {
  set_observer(nullptr);
  if (!races_.empty()) end();
}

void Detector::end() const {
  for (const Race& race : races_) print(race);
  std::fprintf(stderr, "%zu races\n", races_.size());
  std::fflush(nullptr);
  std::_Exit(1);
}

// Before main(), and so before the first launch.
const Detector& started = detector();

}  // namespace

std::vector<Race> take_races() { return detector().take(); }

}  // namespace bucket_moo::emulation

// ---- what compiled code calls --------------------------------------------------------------------------------------

namespace {

using bucket_moo::emulation::AccessKind;

void access(const volatile void* address, std::size_t bytes, AccessKind kind, const void* code) {
  if (bucket_moo::emulation::running != nullptr) {
    bucket_moo::emulation::running->access(address, bytes, kind, code);
  }
}

}  // namespace

#define TSAN_ACCESS(name, bytes, kind) \
  void __tsan_##name(void* address) { access(address, bytes, AccessKind::kind, __builtin_return_address(0)); }
#define TSAN_ACCESSES(bytes)                        \
  TSAN_ACCESS(read##bytes, bytes, read)             \
  TSAN_ACCESS(write##bytes, bytes, write)           \
  TSAN_ACCESS(unaligned_read##bytes, bytes, read)   \
  TSAN_ACCESS(unaligned_write##bytes, bytes, write) \
  TSAN_ACCESS(volatile_read##bytes, bytes, read)    \
  TSAN_ACCESS(volatile_write##bytes, bytes, write)

#define TSAN_ATOMICS(bits, type)                                                  \
  type __tsan_atomic##bits##_load(const volatile type* address, int) {            \
    access(address, bits / 8, AccessKind::atomic, __builtin_return_address(0));   \
    return __atomic_load_n(address, __ATOMIC_SEQ_CST);                            \
  }                                                                               \
  void __tsan_atomic##bits##_store(volatile type* address, type value, int) {     \
    access(address, bits / 8, AccessKind::atomic, __builtin_return_address(0));   \
    __atomic_store_n(address, value, __ATOMIC_SEQ_CST);                           \
  }                                                                               \
  type __tsan_atomic##bits##_fetch_add(volatile type* address, type value, int) { \
    access(address, bits / 8, AccessKind::atomic, __builtin_return_address(0));   \
    return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);                  \
  }

extern "C" {
TSAN_ACCESSES(1)
TSAN_ACCESSES(2)
TSAN_ACCESSES(4)
TSAN_ACCESSES(8)
TSAN_ACCESSES(16)
void __tsan_read_range(void* address, std::size_t bytes) {
  access(address, bytes, AccessKind::read, __builtin_return_address(0));
}
void __tsan_write_range(void* address, std::size_t bytes) {
  access(address, bytes, AccessKind::write, __builtin_return_address(0));
}
// Of the atomic operations those that the emulation's are made of, and the C++ library's.
TSAN_ATOMICS(8, std::uint8_t)
TSAN_ATOMICS(32, std::uint32_t)
TSAN_ATOMICS(64, std::uint64_t)
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
