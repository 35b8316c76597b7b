// SPDX-License-Identifier: Apache-2.0
// Observations of the state through a stencil of K points,
//
//   y[m, p] = sum_k weight[k, p] x[m, index[k, p]] - target[p],
//
// and, where a cost is asked for, the sum of y^2 over a block of observations.
#pragma once

#include "core/base.h"
#include "core/dot.h"

namespace lsda {

// Observations that share the stencil in cache while the members pass.
constexpr int64_t kObservationBlock = 512;

template <class T>
struct ProjectParams {
  T* y;                  // (M, P)
  double* squares;       // (M, blocks of observations), or null
  const T* x;            // (M, N)
  const int32_t* index;  // (K, P)
  const T* weight;       // (K, P)
  const T* target;       // (P), or null
  int64_t members, cells, observations, points;
};

namespace core {

// One block of observations of one member.
template <class T>
LSDA_INLINE void obs_project(const ProjectParams<T>& a, int64_t m, int64_t block) {
  const int64_t P = a.observations, first = block * kObservationBlock;
  const int64_t n = smaller(kObservationBlock, P - first);
  const T* __restrict x = a.x + m * a.cells;
  T* __restrict y = a.y + m * P + first;
  for (int64_t k = 0; k < a.points; ++k) {
    const int32_t* __restrict index = a.index + k * P + first;
    const T* __restrict weight = a.weight + k * P + first;
    if (k == 0) {
      for (int64_t i = 0; i < n; ++i) y[i] = weight[i] * x[index[i]];
    } else {
      for (int64_t i = 0; i < n; ++i) y[i] += weight[i] * x[index[i]];
    }
  }
  if (a.target) {
    const T* __restrict target = a.target + first;
    for (int64_t i = 0; i < n; ++i) y[i] -= target[i];
  }
  if (a.squares) a.squares[m * blocks_of(P, kObservationBlock) + block] = dot(y, y, n);
}

}  // namespace core
}  // namespace lsda
