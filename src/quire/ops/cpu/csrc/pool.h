// Threads that share the tasks of one operation at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace quire {

// Tasks are taken one by one from a counter, so a thread that loses its core delays only the task it holds. Workers spin
// a moment for the next operation, then sleep: an idle pool costs nothing.
class Pool {
 public:
  using Task = void (*)(void* context, int64_t task, int thread);

  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Held by the caller around an operation (several ``run`` and the scratch memory it uses).
  std::mutex& owner() { return owner_; }

  // Runs ``task(context, i, thread)`` for i in [0, tasks) and returns when all are done. The caller is thread 0.
  void run(int64_t tasks, Task task, void* context);

  // Memory of one thread, aligned to 64 bytes, kept between operations. ``slot``: independent blocks of one thread.
  void* scratch(int thread, int slot, size_t bytes);

  static constexpr int kScratchSlots = 4;

 private:
  struct Block {
    void* data = nullptr;
    size_t bytes = 0;
  };

  void work(int thread);
  bool take(int thread);
  bool await_work();
  static uint32_t remaining(uint64_t ticket) { return static_cast<uint32_t>(ticket); }

  alignas(64) std::atomic<uint64_t> ticket_{0};  // epoch << 32 | tasks not yet taken
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) Task task_ = nullptr;
  void* context_ = nullptr;
  int64_t tasks_ = 0;
  uint64_t epoch_ = 0;
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex sleep_;
  std::condition_variable wake_;
  std::mutex owner_;
  std::vector<Block> scratch_;
  std::vector<std::thread> workers_;
};

}  // namespace quire
