#include "pool.h"

#include <chrono>
#include <cstdlib>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace quire {
namespace {

constexpr auto kSpin = std::chrono::microseconds(50);
constexpr int kSpinsBeforeYield = 1024;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int threads) : scratch_(static_cast<size_t>(threads) * kScratchSlots) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(sleep_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
  for (auto& block : scratch_) std::free(block.data);
}

void Pool::run(int64_t tasks, Task task, void* context) {
  if (tasks <= 0) return;
  if (tasks == 1 || workers_.empty()) {
    for (int64_t i = 0; i < tasks; ++i) task(context, i, 0);
    return;
  }
  task_ = task;
  context_ = context;
  tasks_ = tasks;
  done_.store(0, std::memory_order_relaxed);
  ticket_.store(++epoch_ << 32 | static_cast<uint32_t>(tasks), std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard<std::mutex> lock(sleep_); }
    wake_.notify_all();
  }
  while (take(0)) {
  }
  for (int spins = 0; done_.load(std::memory_order_acquire) != tasks; ++spins) {
    if (spins < kSpinsBeforeYield) {
      pause();
    } else {
      std::this_thread::yield();  // a worker that holds a task has lost its core: let it have this one
    }
  }
}

// The descriptor (task_, context_, tasks_) may be read only after a ticket is won: until that task is done, it stays.
bool Pool::take(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (remaining(ticket) > 0) {
    if (ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) {
      task_(context_, tasks_ - remaining(ticket), thread);
      done_.fetch_add(1, std::memory_order_release);
      return true;
    }
  }
  return false;
}

bool Pool::await_work() {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      if (remaining(ticket_.load(std::memory_order_acquire)) > 0) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  std::unique_lock<std::mutex> lock(sleep_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [this] { return stop_.load() || remaining(ticket_.load(std::memory_order_seq_cst)) > 0; });
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  return !stop_.load();
}

void Pool::work(int thread) {
  do {
    while (take(thread)) {
    }
  } while (await_work());
}

void* Pool::scratch(int thread, int slot, size_t bytes) {
  Block& block = scratch_[static_cast<size_t>(thread) * kScratchSlots + static_cast<size_t>(slot)];
  if (block.bytes < bytes) {
    std::free(block.data);
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    block.data = std::aligned_alloc(64, rounded);
    block.bytes = block.data ? rounded : 0;
    if (!block.data) std::abort();  // out of memory inside a worker: nothing can be reported from there
  }
  return block.data;
}

}  // namespace quire
