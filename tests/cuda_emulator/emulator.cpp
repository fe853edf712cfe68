// The emulator behind emulator.h. One block at a time; its threads are fibers that run one after the other until they
// meet: at a barrier, or as lanes of a warp. Reported as errors, with kernel, block, thread and line:
//
//   - a meeting to which not all come, or come by different lines of the source: a GPU would hang or mix them up
//   - shuffles from lanes outside of the mask; ldmatrix and cp.async outside of shared memory or unaligned
//   - writes beyond dynamic shared memory
//
// And turned into wrong results, which tests see: shared memory that nobody has written is NaN (all bits set), cp.async
// copies when it is waited for and no earlier, and every other launch runs the threads in the opposite order, so that
// what a missing barrier would have protected is read too early in one of them.
#include "emulator.h"

#include <link.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace emulator {
namespace {

constexpr int kMaxThreads = 1024;
constexpr size_t kStack = 256 * 1024;
constexpr int64_t kMaxShared = 232448;  // of a block, on sm_90
constexpr int kMultiprocessors = 2;     // few, so that persistent kernels have several rounds
constexpr int64_t kCanary = 4096;
constexpr int kPoison = 0xff;

enum class State { ready, meeting, barrier, done };

struct Copy {
  void* shared;
  const void* global;
  int bytes;
  bool valid;
};

struct Fiber {
  void* stack = nullptr;
  ucontext_t context;  // where it starts
  jmp_buf resume;      // where it goes on
  bool started = false;
  State state = State::done;
  Site site{};
  const char* waits_for = "";
  std::vector<std::vector<Copy>> copies;  // committed groups, then the open one
};

struct Meeting {
  const char* what;
  unsigned mask, arrived;
  Work work;
  Site site;
  void* brought[32];
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Meeting> meetings[kMaxThreads / 32];
  jmp_buf scheduler;
  int current = 0;
  int arrived = 0, count = 0, result = 0;  // at the block's barrier
  Site barrier{};
  Position position;
  const char* name = "";
  const std::function<void()>* kernel = nullptr;
  std::exception_ptr error;
  std::vector<unsigned char> shared = std::vector<unsigned char>(kMaxShared + 2 * kCanary + 128);
  int64_t shared_size = 0;
  uint64_t launches = 0;
  std::thread::id thread;
};

Machine machine;
int64_t shared_limit = kMaxShared;
std::string launched;  // a line for each launch since launches were last asked for: blocks, then the kernel's name
std::mutex one_launch;

// Marks this library's block of thread-local memory, which holds all __shared__ variables.
thread_local volatile char anchor;

struct Range {
  char* begin = nullptr;
  size_t size = 0;
};

int find_thread_locals(dl_phdr_info* info, size_t, void* result) {
  const auto here = reinterpret_cast<uintptr_t>(&find_thread_locals);
  bool ours = false;
  size_t size = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_LOAD && here >= begin && here < begin + header.p_memsz) ours = true;
    if (header.p_type == PT_TLS) size = header.p_memsz;
  }
  if (ours) *static_cast<Range*>(result) = {static_cast<char*>(info->dlpi_tls_data), size};
  return ours;
}

Range thread_locals() {
  anchor = 0;  // makes the block exist
  Range range;
  dl_iterate_phdr(find_thread_locals, &range);
  return range;
}

Range statics;  // of this launch

unsigned char* shared_begin() {
  const auto address = reinterpret_cast<uintptr_t>(machine.shared.data()) + kCanary;
  return reinterpret_cast<unsigned char*>((address + 127) / 128 * 128);
}

std::string place(Site site) {
  const char* slash = site.file == nullptr ? nullptr : std::strrchr(site.file, '/');
  return std::string(slash == nullptr ? "?" : slash + 1) + ":" + std::to_string(site.line);
}

void yield() {
  if (_setjmp(machine.fibers[machine.current]->resume) == 0) _longjmp(machine.scheduler, 1);
}

void fiber_main() {
  for (;;) {
    try {
      (*machine.kernel)();
    } catch (...) {
      if (!machine.error) machine.error = std::current_exception();
    }
    machine.fibers[machine.current]->state = State::done;
    yield();
  }
}

// Lets a fiber begin anew, on a stack of its own.
void prepare(Fiber& fiber) {
  void* const stack = fiber.stack;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
  fiber.started = false;
}

void reset_fibers() {
  for (auto& fiber : machine.fibers) prepare(*fiber);
}

void add_fiber() {
  auto fiber = std::make_unique<Fiber>();
  fiber->stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (fiber->stack == MAP_FAILED) throw std::bad_alloc();
  prepare(*fiber);
  machine.fibers.push_back(std::move(fiber));
}

void run_fiber(int index) {
  machine.current = index;
  machine.position.thread = dim3(static_cast<unsigned>(index), 0, 0);
  Fiber& fiber = *machine.fibers[index];
  if (_setjmp(machine.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

[[noreturn]] void raise(const std::string& message) {
  throw std::runtime_error(std::string(machine.name) + ", block " + std::to_string(machine.position.block.x) + ": " +
                           message);
}

void release_barrier() {
  machine.result = machine.count;
  machine.arrived = machine.count = 0;
  for (auto& fiber : machine.fibers) {
    if (fiber->state == State::barrier) fiber->state = State::ready;
  }
}

// Nobody can go on.
[[noreturn]] void report_deadlock(int threads) {
  std::string message = "not all threads come to where others wait:";
  std::string last;
  int shown = 0;
  for (int t = 0; t < threads; ++t) {
    const Fiber& fiber = *machine.fibers[t];
    const std::string now = fiber.state == State::done
                                ? "has ended"
                                : std::string("waits for ") + fiber.waits_for + " at " + place(fiber.site);
    if (now != last && ++shown < 8) message += "\n  from thread " + std::to_string(t) + " on: " + now;
    last = now;
  }
  raise(message);
}

// Runs each lane that can go on until it waits; whether there was one.
bool run_warp(int warp, int threads, bool backwards) {
  const int first = 32 * warp, last = std::min(threads, first + 32) - 1;
  bool progress = false;
  for (int t = backwards ? last : first; t >= first && t <= last && !machine.error; t += backwards ? -1 : 1) {
    if (machine.fibers[t]->state != State::ready) continue;
    run_fiber(t);
    progress = true;
  }
  return progress;
}

void run_block(int threads) {
  std::memset(statics.begin, kPoison, statics.size);
  unsigned char* const shared = shared_begin();
  std::memset(shared - kCanary / 2, kPoison, machine.shared_size + kCanary);
  for (int t = 0; t < threads; ++t) {
    machine.fibers[t]->state = State::ready;
    machine.fibers[t]->copies.assign(1, {});
  }
  for (auto& meetings : machine.meetings) meetings.clear();
  machine.arrived = machine.count = 0;
  const bool backwards = machine.launches % 2 != 0;
  const int warps = (threads + 31) / 32;
  for (bool progress = true; progress;) {
    progress = false;
    for (int i = 0; i < warps; ++i) {  // as unfair as it can be: a warp goes on until it waits for another
      while (run_warp(backwards ? warps - 1 - i : i, threads, backwards)) {
        progress = true;
        if (machine.error) return;
      }
    }
    if (machine.arrived == threads) {
      release_barrier();
      progress = true;
    }
  }
  for (int t = 0; t < threads; ++t) {
    if (machine.fibers[t]->state != State::done) report_deadlock(threads);
  }
  for (int64_t i = 0; i < kCanary / 2; ++i) {
    if (shared[-1 - i] != kPoison) raise("writes " + std::to_string(i + 1) + " bytes before its dynamic shared memory");
    if (shared[machine.shared_size + i] != kPoison) {
      raise("writes " + std::to_string(i + 1) + " bytes beyond its dynamic shared memory");
    }
  }
}

}  // namespace

const Position& position() {
  return machine.position;
}

void* dynamic_shared() {
  return shared_begin();
}

void fail(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  raise("thread " + std::to_string(machine.current) + ": " + text);
}

void launch(const char* name, int64_t blocks, int threads, int64_t shared, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(one_launch);
  machine.name = name;
  if (threads < 1 || threads > kMaxThreads) raise("wants " + std::to_string(threads) + " threads");
  if (shared < 0 || shared > shared_limit) raise("wants " + std::to_string(shared) + " bytes of shared memory");
  launched += std::to_string(blocks) + " " + name + "\n";
  if (machine.thread != std::this_thread::get_id()) {
    machine.thread = std::this_thread::get_id();
    reset_fibers();
  }
  while (machine.fibers.size() < static_cast<size_t>(threads)) add_fiber();
  statics = thread_locals();
  machine.kernel = &kernel;
  machine.shared_size = shared;
  machine.error = nullptr;
  machine.position.block_size = dim3(static_cast<unsigned>(threads), 1, 1);
  machine.position.grid_size = dim3(static_cast<unsigned>(blocks), 1, 1);
  ++machine.launches;
  try {
    for (int64_t block = 0; block < blocks; ++block) {
      machine.position.block = dim3(static_cast<unsigned>(block), 0, 0);
      run_block(threads);
      if (machine.error) std::rethrow_exception(machine.error);
    }
  } catch (...) {
    reset_fibers();
    throw;
  }
}

int block_barrier(bool predicate, Site site) {
  Fiber& fiber = *machine.fibers[machine.current];
  if (machine.arrived == 0) machine.barrier = site;
  if (machine.barrier.line != site.line || std::strcmp(machine.barrier.file, site.file) != 0) {
    fail("comes to the barrier at %s, others to that at %s", place(site).c_str(), place(machine.barrier).c_str());
  }
  ++machine.arrived;
  machine.count += predicate;
  fiber.state = State::barrier;
  fiber.site = site;
  fiber.waits_for = "the block's barrier";
  yield();
  return machine.result;
}

void meet(const char* what, unsigned mask, void* brought, Work work, Site site) {
  const int thread = machine.current, lane = thread % 32, warp = thread / 32;
  const int threads = static_cast<int>(machine.position.block_size.x), lanes = std::min(32, threads - warp * 32);
  if ((mask >> lane & 1) == 0) fail("%s at %s: its lane is not in the mask", what, place(site).c_str());
  if (lanes < 32 && mask >> lanes != 0)
    fail("%s at %s: the mask names lanes beyond the block", what, place(site).c_str());
  auto& meetings = machine.meetings[warp];
  auto found = std::find_if(meetings.begin(), meetings.end(), [&](const Meeting& m) { return m.mask == mask; });
  if (found == meetings.end()) {
    meetings.push_back({what, mask, 0, work, site, {}});
    found = meetings.end() - 1;
  }
  if (found->site.line != site.line || found->work != work || std::strcmp(found->site.file, site.file) != 0) {
    fail("comes to %s at %s, other lanes of its warp to %s at %s", what, place(site).c_str(), found->what,
         place(found->site).c_str());
  }
  found->arrived |= 1u << lane;
  found->brought[lane] = brought;
  if (found->arrived != mask) {
    Fiber& fiber = *machine.fibers[thread];
    fiber.state = State::meeting;
    fiber.site = site;
    fiber.waits_for = what;
    yield();
    return;
  }
  const Meeting meeting = *found;
  meetings.erase(found);
  if (work != nullptr) work(meeting.brought);
  for (int other = 0; other < 32; ++other) {
    if (other != lane && (mask >> other & 1) != 0) machine.fibers[warp * 32 + other]->state = State::ready;
  }
}

namespace {

struct Vote {
  bool predicate;
  unsigned votes;
};

void count_votes(void* const* lanes) {
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes[lane] != nullptr && static_cast<Vote*>(lanes[lane])->predicate) votes |= 1u << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes[lane] != nullptr) static_cast<Vote*>(lanes[lane])->votes = votes;
  }
}

}  // namespace

unsigned ballot(unsigned mask, bool predicate, Site site) {
  Vote vote{predicate, 0};
  meet("a vote", mask, &vote, count_votes, site);
  return vote.votes;
}

void check_shared(const void* pointer, int bytes, const char* what) {
  const auto* byte = static_cast<const unsigned char*>(pointer);
  const auto* locals = reinterpret_cast<const unsigned char*>(statics.begin);
  const bool dynamic = byte >= shared_begin() && byte + bytes <= shared_begin() + machine.shared_size;
  if (!dynamic && !(byte >= locals && byte + bytes <= locals + statics.size)) fail("%s outside of shared memory", what);
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) fail("%s: want an address aligned to %d bytes", what, bytes);
}

void cp_async(void* shared, const void* global, int bytes, bool valid) {
  check_shared(shared, bytes, "cp.async");
  if (valid && reinterpret_cast<uintptr_t>(global) % bytes != 0) fail("cp.async reads from an unaligned address");
  machine.fibers[machine.current]->copies.back().push_back({shared, global, bytes, valid});
}

void cp_async_commit() {
  machine.fibers[machine.current]->copies.emplace_back();
}

void cp_async_wait(int groups) {
  auto& copies = machine.fibers[machine.current]->copies;
  while (static_cast<int>(copies.size()) - 1 > groups) {
    for (const Copy& copy : copies.front()) {
      if (copy.valid) std::memcpy(copy.shared, copy.global, copy.bytes);
      if (!copy.valid) std::memset(copy.shared, 0, copy.bytes);
    }
    copies.erase(copies.begin());
  }
}

}  // namespace emulator

// What tests set and ask.
extern "C" {
#define BERTXFER_EXPORTED __attribute__((visibility("default")))

// The shared memory that a block can have; 0: what an H100 has.
BERTXFER_EXPORTED void emulator_set_shared_limit(int64_t bytes) {
  emulator::shared_limit = bytes > 0 ? bytes : emulator::kMaxShared;
}

// What has been launched since the last call, a line each: blocks and kernel. Copies and memsets count.
BERTXFER_EXPORTED const char* emulator_launches() {
  static std::string told;
  told.swap(emulator::launched);
  emulator::launched.clear();
  return told.c_str();
}
}

// The few functions of the CUDA runtime that launchers call.
extern "C" {
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? emulator::kMultiprocessors
                                                       : static_cast<int>(emulator::shared_limit);
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) {
  return "an error of the CUDA runtime";
}
cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  emulator::launched += "1 memset\n";
  std::memset(target, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  emulator::launched += "1 memcpy\n";
  std::memcpy(target, source, bytes);
  return cudaSuccess;
}
}
