// SPDX-License-Identifier: Apache-2.0
// Observations that are sorted by place, and the caller's order, a few members at a time so that they stay in cache.
#pragma once

#include <memory>

#include "core/obs_project.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace lsda {

LSDA_DISPATCH(obs_permute)

namespace cpu {

// to (M, P) = from (M, P) in this order of each member's observations.
template <class T>
void permute(T* to, const T* from, const int32_t* order, int64_t M, int64_t P, int threads) {
  const int64_t blocks = blocks_of(P, kObservationBlock);
  parallel_for(M * blocks, threads, [&](int64_t task) {
    int64_t block = task % blocks;
    T* y = to + task / blocks * P;
    const T* x = from + task / blocks * P;
    dispatch::obs_permute(y, x, order, P, block);
  });
}

// each(scratch (M', P), first, M') for all members.
template <class T, class F>
void sorted_members(int64_t members, int64_t observations, const F& each) {
  constexpr int64_t kTogether = 8;
  const std::unique_ptr<T[]> scratch(new T[static_cast<size_t>(smaller(kTogether, members) * observations)]);
  for (int64_t first = 0; first < members; first += kTogether) {
    each(scratch.get(), first, smaller(kTogether, members - first));
  }
}

}  // namespace cpu
}  // namespace lsda
