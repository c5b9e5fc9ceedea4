#include "memory.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <set>

#include "emulation.hpp"

namespace bucket_moo::emulation {
namespace {

/// As torch's allocator aligns, and no better: a block does not start with its page.
constexpr std::size_t kAlignment = 512;

const std::size_t page_bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));

enum class Access { none, read, write };

struct Use {
  Epoch epoch = {};
  const char* task = "";
};

struct Page {
  Access open = Access::none;
  bool fenced = false;  ///< `written` is visible to the host without waiting
  Use written = {};
  std::vector<Use> read = {};  ///< since then, the last of each stream
};

struct Block {
  std::byte* map;
  std::size_t bytes;  ///< from map + kAlignment on
  Place place;
  std::vector<Page> pages = {};  ///< one more than `bytes` needs, which nobody may touch
  std::set<int> also_used_by = {};
  bool is_released = false;
};

struct TouchedPage {
  Block* block;
  std::size_t page;
};

struct Memory {
  std::map<const std::byte*, Block> blocks;  ///< by their end
  std::vector<TouchedPage> open;             ///< to be closed when a task ends, or before one begins
  const Task* task = nullptr;
  const Stream* stream = nullptr;
  Epoch epoch = {};
  pthread_t thread = {};
  bool fenced = false;
  struct sigaction previous = {};
};

Memory& memory() {
  static Memory* const instance = new Memory;  // never destroyed, as streams
  return *instance;
}

Block* find(const void* address) {
  const auto found = memory().blocks.upper_bound(static_cast<const std::byte*>(address));
  if (found == memory().blocks.end() || address < found->second.map) return nullptr;
  return &found->second;
}

std::size_t page_of(const Block& block, const void* address) {
  return static_cast<std::size_t>(static_cast<const std::byte*>(address) - block.map) / page_bytes;
}

void protect(Block& block, std::size_t page, Access access) {
  if (block.pages[page].open == access) return;
  const int flags = access == Access::none ? PROT_NONE : access == Access::read ? PROT_READ : PROT_READ | PROT_WRITE;
  if (mprotect(block.map + page * page_bytes, page_bytes, flags) != 0) fault("mprotect() failed");
  if (block.pages[page].open == Access::none) memory().open.push_back({&block, page});
  block.pages[page].open = access;
}

void close_pages() {
  Memory& m = memory();
  std::vector<TouchedPage> open;
  open.swap(m.open);
  for (const TouchedPage& touched : open) protect(*touched.block, touched.page, Access::none);
}

std::string describe(const Block& block, const void* address) {
  const auto at = static_cast<const std::byte*>(address) - block.map - static_cast<std::ptrdiff_t>(kAlignment);
  return "byte " + std::to_string(at) + " of " + std::to_string(block.bytes) + " of " +
         (block.place == Place::device ? "device" : "pinned") + " memory";
}

/// \param clock of who uses the page
void check_use(const Block& block, const void* address, Access access, const std::string& who, const Clock& clock) {
  const Page& page = block.pages[page_of(block, address)];
  const std::string verb = access == Access::read ? " reads " : " writes ";
  if (block.is_released) fault(who + verb + describe(block, address) + " that was freed");
  if (page_of(block, address) + 1 == block.pages.size()) fault(who + verb + describe(block, address));
  const auto require = [&](const Use& earlier, const char* did) {
    if (clock.has(earlier.epoch)) return;
    fault(who + verb + describe(block, address) + ", which " + earlier.task + " on stream " +
          std::to_string(earlier.epoch.stream) + did + " and nobody waited for");
  };
  require(page.written, " wrote");
  if (access == Access::write) {
    for (const Use& reader : page.read) require(reader, " reads");
  }
}

/// By the task that runs.
void use(Block& block, const void* address, Access access) {
  const Memory& m = memory();
  check_use(block, address, access, std::string(m.task->name) + " on stream " + std::to_string(m.stream->id),
            m.stream->clock);
  Page& page = block.pages[page_of(block, address)];
  const Use now{m.epoch, m.task->name};
  if (access == Access::write) {
    page.written = now;
    page.fenced = false;
    page.read.clear();
    return;
  }
  for (Use& reader : page.read) {
    if (reader.epoch.stream == now.epoch.stream) {
      reader = now;
      return;
    }
  }
  page.read.push_back(now);
}

void use_by_host(Block& block, const void* address, Access access) {
  if (block.place == Place::device) {
    fault("the host touches " + describe(block, address));
    return;
  }
  Page& page = block.pages[page_of(block, address)];
  if (page.fenced && access == Access::read) return;
  check_use(block, address, access, "the host", host_clock());
}

/// A page fault. The first one at a page lets it be read, the next one written: so every machine tells the two apart.
bool touch(void* address) {
  const std::lock_guard lock(runtime_mutex());
  Memory& m = memory();
  Block* const block = find(address);
  if (block == nullptr) return false;
  const std::size_t page = page_of(*block, address);
  if (block->pages[page].open == Access::write) return true;  // another thread came first
  const Access access = block->pages[page].open == Access::none ? Access::read : Access::write;
  if (m.task != nullptr && pthread_equal(m.thread, pthread_self()) != 0) {
    use(*block, address, access);
  } else {
    use_by_host(*block, address, access);
  }
  protect(*block, page, access);
  return true;
}

void on_page_fault(int signal, siginfo_t* info, void* context) {
  if (touch(info->si_addr)) return;
  const struct sigaction& previous = memory().previous;
  if ((previous.sa_flags & SA_SIGINFO) != 0) {
    previous.sa_sigaction(signal, info, context);
  } else {
    sigaction(signal, &previous, nullptr);  // the instruction faults again
  }
}

void watch_page_faults() {
  struct sigaction current = {};
  sigaction(SIGSEGV, nullptr, &current);
  if ((current.sa_flags & SA_SIGINFO) != 0 && current.sa_sigaction == on_page_fault) return;
  memory().previous = current;
  struct sigaction ours = {};
  ours.sa_sigaction = on_page_fault;
  ours.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &ours, nullptr);
}

void open_range(const Range& range, Access access) {
  const auto* at = static_cast<const std::byte*>(range.begin);
  const std::byte* const end = at + range.bytes;
  while (at < end) {
    Block* const block = find(at);
    if (block == nullptr) return;  // memory that is not ours
    use(*block, at, access);
    const std::size_t page = page_of(*block, at);
    if (block->pages[page].open != Access::write) protect(*block, page, access);
    at = block->map + (page + 1) * page_bytes;
  }
}

}  // namespace

void* allocate(Place place, std::size_t bytes, const Stream* stream) {
  const std::lock_guard lock(runtime_mutex());
  watch_page_faults();
  const std::size_t pages = (kAlignment + bytes + page_bytes - 1) / page_bytes + 1;
  void* const map = mmap(nullptr, pages * page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return nullptr;
  // As much as is known of what was there before. As a floating-point number of any type it is a NaN.
  mprotect(map, pages * page_bytes, PROT_READ | PROT_WRITE);
  std::memset(map, 0xff, (pages - 1) * page_bytes);
  mprotect(map, pages * page_bytes, PROT_NONE);
  Block block{static_cast<std::byte*>(map), bytes, place};
  block.pages.resize(pages);
  if (stream != nullptr) {
    for (Page& page : block.pages) page.written = {stream->clock.now(stream->id), "work before the allocation"};
  }
  std::byte* const end = block.map + pages * page_bytes;
  memory().blocks.emplace(end, std::move(block));
  return static_cast<std::byte*>(map) + kAlignment;
}

bool release(Place place, void* pointer, const Stream* owner) {
  const std::lock_guard lock(runtime_mutex());
  Block* const block = find(pointer);
  if (block == nullptr || block->place != place || block->is_released || pointer != block->map + kAlignment) {
    return false;
  }
  close_pages();
  const Clock& clock = owner == nullptr ? host_clock() : owner->clock;
  const auto require = [&](const Use& last) {
    if (clock.has(last.epoch) || host_clock().has(last.epoch) || block->also_used_by.contains(last.epoch.stream))
      return;
    fault(describe(*block, pointer) + " is freed while " + last.task + " on stream " +
          std::to_string(last.epoch.stream) + " may still use it");
  };
  for (const Page& page : block->pages) {
    require(page.written);
    for (const Use& reader : page.read) require(reader);
  }
  block->is_released = true;
  madvise(block->map, block->pages.size() * page_bytes, MADV_DONTNEED);
  return true;
}

void record_use(const void* pointer, const Stream& stream) {
  const std::lock_guard lock(runtime_mutex());
  Block* const block = find(pointer);
  if (block != nullptr) block->also_used_by.insert(stream.id);
}

Known look_up(Range range) {
  const std::lock_guard lock(runtime_mutex());
  const Block* const block = find(range.begin);
  if (block == nullptr || block->is_released) return Known::no;
  const std::byte* const first = block->map + kAlignment;
  const auto* const begin = static_cast<const std::byte*>(range.begin);
  if (begin < first || begin + range.bytes > first + block->bytes) return Known::beyond;
  return block->place == Place::device ? Known::device : Known::pinned;
}

RunningTask::RunningTask(const Task& task, const Stream& stream, Epoch epoch) {
  Memory& m = memory();
  close_pages();  // what the host has used
  m.task = &task;
  m.stream = &stream;
  m.epoch = epoch;
  m.thread = pthread_self();
  m.fenced = false;
  for (const Range& range : task.reads) open_range(range, Access::read);
  for (const Range& range : task.writes) open_range(range, Access::write);
}

RunningTask::~RunningTask() {
  Memory& m = memory();
  if (m.fenced) {
    for (const TouchedPage& touched : m.open) {
      Page& page = touched.block->pages[touched.page];
      if (page.open == Access::write) page.fenced = true;
    }
  }
  close_pages();
  m.task = nullptr;
  m.stream = nullptr;
}

void system_fence() { memory().fenced = true; }

}  // namespace bucket_moo::emulation
