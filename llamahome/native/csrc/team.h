// A team of threads for one parallel region per step. Its barriers spin briefly and then yield, so
// that they stay cheap when cores are shared; OpenMP's would use up the other program's time slice.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace llamahome {

inline void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Team {
 public:
  explicit Team(int size) : size_(size < 1 ? 1 : size) {
    for (int id = 1; id < size_; ++id) workers_.emplace_back([this, id] { work(id); });
  }

  ~Team() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      epoch_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Runs task(id) on every thread of the team; the caller is thread 0.
  void run(const std::function<void(int)>& task) {
    task_ = &task;
    if (size_ > 1) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
        epoch_.fetch_add(1, std::memory_order_release);
      }
      wake_.notify_all();
    }
    task(0);
    barrier();
  }

  // Waits until every thread of the team is here.
  void barrier() {
    if (size_ == 1) return;
    const unsigned phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins < kBarrierSpins) {
        pause_cpu();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  static constexpr int kBarrierSpins = 2000;  // tens of microseconds
  // Longer than the gap between two steps of a busy engine: a spin is shorter than a wake-up.
  static constexpr std::chrono::microseconds kIdle{1500};

  void work(int id) {
    unsigned seen = 0;
    while (true) {
      const auto tired = std::chrono::steady_clock::now() + kIdle;
      while (epoch_.load(std::memory_order_acquire) == seen &&
             std::chrono::steady_clock::now() < tired) {
        for (int spins = 0; spins < 32; ++spins) pause_cpu();
        std::this_thread::yield();  // gives the core to a thread with work
      }
      if (epoch_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return epoch_.load(std::memory_order_acquire) != seen; });
      }
      seen = epoch_.load(std::memory_order_acquire);
      if (stop_) return;
      (*task_)(id);
      barrier();
    }
  }

  const int size_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<unsigned> epoch_{0};
  std::atomic<unsigned> phase_{0};
  std::atomic<int> arrived_{0};
  const std::function<void(int)>* task_ = nullptr;
  bool stop_ = false;
};

}  // namespace llamahome
