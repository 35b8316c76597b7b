// SPDX-License-Identifier: Apache-2.0
// Tasks in equal shares over the threads that torch was given. Which thread runs a task decides no bit of the result.
#pragma once

#include <cstdint>

namespace lsda {

// Below this many elements a thread costs more than it brings.
constexpr int64_t kGrain = 32768;

constexpr int useful_threads(int threads, int64_t elements) {
  const int64_t most = elements / kGrain + 1;
  return most < threads ? static_cast<int>(most) : threads;
}

// Members that pass over the data of a piece while it is in cache: few where the pieces alone do not feed the threads.
constexpr int64_t members_together(int64_t pieces, int64_t members, int threads) {
  const int64_t most = 16, fed = pieces * members / (4 * threads);
  return fed < 1 ? 1 : fed < most ? fed : most;
}

template <class F>
void parallel_for(int64_t tasks, int threads, const F& f) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && tasks > 1) schedule(static)
  for (int64_t task = 0; task < tasks; ++task) f(task);
}

}  // namespace lsda
