#pragma once

#include "pool.h"

namespace quire {

// ``body(task, thread)`` for each task, on the pool's threads.
template <typename Body>
void parallel(Pool& pool, int64_t tasks, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  pool.run(tasks, [](void* context, int64_t task, int thread) { (*static_cast<Plain*>(context))(task, thread); },
           const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace quire
