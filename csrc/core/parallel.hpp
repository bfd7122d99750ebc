#pragma once
#include <atomic>
#include <chrono>
#include <exception>
#include <functional>
#include <thread>

#include "core/types.hpp"

namespace ff {

// Thrown on the calling thread when the stop predicate said stop.
struct Interrupted : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};

// A wish to stop, asked for now and then by long loops. Any thread may call requested(); only the
// thread that made the object asks the predicate, and no more than every 50 ms.
class Stop {
 public:
  explicit Stop(std::function<bool()> predicate = {})
      : predicate_(std::move(predicate)), owner_(std::this_thread::get_id()), last_(clock::now()) {}

  bool requested() {
    if (!stopped_.load(std::memory_order_relaxed) && predicate_ &&
        std::this_thread::get_id() == owner_) {
      const auto now = clock::now();
      if (now - last_ > std::chrono::milliseconds(50)) {
        last_ = now;
        if (predicate_()) stopped_.store(true, std::memory_order_relaxed);
      }
    }
    return stopped_.load(std::memory_order_relaxed);
  }

  void throw_if_requested() {
    if (requested()) throw Interrupted();
  }

 private:
  using clock = std::chrono::steady_clock;
  std::function<bool()> predicate_;
  std::thread::id owner_;
  clock::time_point last_;
  std::atomic<bool> stopped_{false};
};

namespace detail {
using Task = void (*)(void* context, index task, int worker);
void run_tasks(index n_tasks, int n_threads, Stop& stop, Task call, void* context);
}  // namespace detail

// The one parallel loop: body(task, worker) for every task in [0, n_tasks), worker in [0,
// n_threads). Tasks begin in rising order and end in any. A body that writes only what belongs to
// its task gives the same bits for any number of threads. An exception in a body ends the loop and
// is rethrown here, as is Interrupted.
template <class Body>
void parallel_for(index n_tasks, int n_threads, Stop& stop, Body&& body) {
  detail::run_tasks(
      n_tasks, n_threads, stop,
      [](void* context, index task, int worker) {
        (*static_cast<std::remove_reference_t<Body>*>(context))(task, worker);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// What n_threads = None means: OMP_NUM_THREADS or the limit that threadpoolctl has set, and never
// more than the processors that this process may use.
int default_threads();

// The runtime below the loop, for show_config().
const char* threading_runtime();

}  // namespace ff
