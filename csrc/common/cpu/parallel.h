// Work sharing for kernels. Items are handed out one by one, so that ragged lengths balance. Kernels stay deterministic
// because each item writes only to its own outputs; sums across items are taken afterwards, in order.
#pragma once

#include <atomic>
#include <cstdint>

namespace bertxfer {

using RangeFunction = void (*)(int64_t begin, int64_t end, void* context);

// torch's thread pool, behind a plain function (parallel.cpp) so that kernels see no torch header.
void parallel_for(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context);
int64_t num_threads();

// Calls make_worker() once per thread and the worker it returns on items 0..items-1, each exactly once. Work of fewer
// than kSerialWork operations stays on the calling thread because threads cost microseconds to wake.
constexpr double kSerialWork = 6e5;
constexpr int64_t kTurns = 4;  // items per thread, where work can be divided freely

template <class MakeWorker>
void for_each_item(int64_t items, double operations, const MakeWorker& make_worker) {
  struct Context {
    std::atomic<int64_t> next{0};
    int64_t items;
    const MakeWorker* make_worker;
  } context;
  context.items = items;
  context.make_worker = &make_worker;
  auto run = [](int64_t, int64_t, void* opaque) {
    auto& shared = *static_cast<Context*>(opaque);
    auto worker = (*shared.make_worker)();
    for (int64_t item = shared.next.fetch_add(1); item < shared.items; item = shared.next.fetch_add(1)) worker(item);
  };
  int64_t threads = operations < kSerialWork ? 1 : num_threads();
  if (threads > items) threads = items;
  if (threads <= 1) {
    run(0, 1, &context);
  } else {
    parallel_for(0, threads, 1, run, &context);
  }
}

}  // namespace bertxfer
