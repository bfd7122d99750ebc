#include "core/parallel.hpp"

#include <algorithm>
#include <mutex>
#include <system_error>
#include <vector>

#include "core/buffer.hpp"

#ifdef _OPENMP
#  include <omp.h>
#  if defined(__unix__) || defined(__APPLE__)
#    include <pthread.h>
#    include <sys/resource.h>
#  endif
#else
#  include <cstdlib>
#  ifdef __linux__
#    include <sched.h>
#  endif
#endif

namespace ff {
namespace {

#ifdef _OPENMP
// After fork(), GNU OpenMP would wait for ever in the child for a team that only the parent has. So
// the child runs the loop on threads of its own, which cost more to start.
std::atomic<bool> forked{false};

#  if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int at_fork =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });
#  endif
#endif

// Ranges of tasks, each of which is handed out in rising order. A worker takes tasks from the range
// of its own number until none is left, and then from the next range.
class Loop {
 public:
  Loop(index n_tasks, int n_ranges, Stop& stop, detail::Task call, void* context)
      : ranges_(n_ranges), stop_(stop), call_(call), context_(context) {
    for (int r = 0; r < n_ranges; ++r) {
      ranges_[r].next.store(first_of_range(n_tasks, n_ranges, r), std::memory_order_relaxed);
      ranges_[r].end = first_of_range(n_tasks, n_ranges, r + 1);
    }
  }

  // Runs on each worker: takes the next task until none is left. It must not throw, because an
  // exception that leaves an OpenMP region ends the process.
  void work(int worker) noexcept {
    try {
      const std::size_t n = ranges_.size();
      for (std::size_t tried = 0; tried < n; ++tried) {
        Range& range = ranges_[(std::size_t(worker) + tried) % n];
        for (;;) {
          if (stop_.requested() || failed_.load(std::memory_order_relaxed)) return;
          const index task = range.next.fetch_add(1, std::memory_order_relaxed);
          if (task >= range.end) break;
          call_(context_, task, worker);
        }
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
      failed_.store(true, std::memory_order_relaxed);
    }
  }

  void finish() {
    if (error_) std::rethrow_exception(error_);
    stop_.throw_if_requested();
  }

 private:
  struct alignas(kCacheLine) Range {
    std::atomic<index> next{0};
    index end = 0;
  };

  std::vector<Range> ranges_;
  Stop& stop_;
  const detail::Task call_;
  void* const context_;
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr error_;
};

// Threads that start with the loop and end with it.
void run_on_own_threads(Loop& loop, int n_threads) {
  std::vector<std::thread> team;
  try {
    team.reserve(n_threads - 1);
    for (int worker = 1; worker < n_threads; ++worker)
      team.emplace_back([&loop, worker] { loop.work(worker); });
  } catch (const std::system_error&) {
    // The system allows no more threads: those that have started share the work.
  } catch (const std::bad_alloc&) {
    // The same for memory.
  }
  loop.work(0);
  for (auto& thread : team) thread.join();
}

#ifdef _OPENMP
// Starts n threads that wait for each other, and ends them; returns whether the system allowed it.
bool can_start(int n) {
  std::mutex gate;
  std::vector<std::thread> threads;
  bool all = true;
  {
    const std::lock_guard<std::mutex> closed(gate);
    try {
      threads.reserve(n);
      while (int(threads.size()) < n)
        threads.emplace_back([&gate] { const std::lock_guard<std::mutex> wait(gate); });
    } catch (const std::system_error&) {
      all = false;
    } catch (const std::bad_alloc&) {
      all = false;
    }
  }
  for (std::thread& thread : threads) thread.join();
  return all;
}

// Whether address space is limited, so that threads that once could start may not start again.
bool has_memory_limit() {
#  if defined(__unix__) || defined(__APPLE__)
  rlimit limit;
  return getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
#  else
  return false;
#  endif
}

// GNU OpenMP ends the process if it cannot start a thread. So we start as many ourselves before the
// calling thread's team grows. A smaller team has ended the threads that it did not need.
bool team_can_grow(int n_threads) {
  thread_local int largest = 1, latest = 1;
  const bool grows = n_threads > largest || (n_threads > latest && has_memory_limit());
  if (grows && !can_start(n_threads - 1)) return false;
  largest = std::max(largest, n_threads);
  latest = n_threads;
  return true;
}

void run_on_team(Loop& loop, int n_threads) {
  if (forked.load(std::memory_order_relaxed) || !team_can_grow(n_threads))
    return run_on_own_threads(loop, n_threads);
#  pragma omp parallel num_threads(n_threads)
  loop.work(omp_get_thread_num());
}
#else
void run_on_team(Loop& loop, int n_threads) {
  run_on_own_threads(loop, n_threads);
}

// Processors that this process may use.
int usable_processors() {
#  ifdef __linux__
  cpu_set_t usable;
  if (sched_getaffinity(0, sizeof usable, &usable) == 0) return CPU_COUNT(&usable);
#  endif
  return int(std::thread::hardware_concurrency());
}
#endif

}  // namespace

void detail::run_tasks(index n_tasks, int n_threads, Order order, Stop& stop, Task call,
                       void* context) {
  n_threads = int(std::clamp<index>(n_threads, 1, std::max<index>(n_tasks, 1)));
  Loop loop(n_tasks, order == Order::ranges ? n_threads : 1, stop, call, context);
  if (n_threads == 1) loop.work(0);
  else run_on_team(loop, n_threads);
  loop.finish();
}

#ifdef _OPENMP
int default_threads() {
  return std::max(1, std::min(omp_get_max_threads(), omp_get_num_procs()));
}

const char* threading_runtime() {
  return "OpenMP";
}
#else
int default_threads() {
  const int processors = std::max(1, usable_processors());
  // OpenMP allows a list of numbers, for nested loops; only the first one is used here.
  const char* setting = std::getenv("OMP_NUM_THREADS");
  const long wanted = setting ? std::strtol(setting, nullptr, 10) : 0;
  return wanted > 0 ? int(std::min<long>(wanted, processors)) : processors;
}

const char* threading_runtime() {
  return "threads of its own (built without OpenMP)";
}
#endif

}  // namespace ff
