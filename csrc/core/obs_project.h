// SPDX-License-Identifier: Apache-2.0
// Observations of the state through a stencil of K points,
//
//   y[m, p] = sum_k weight[k, p] x[m, index[k, p]].
//
// Observations in an order of their own wait for the memory. So a CPU has many of them sorted by place, and the results
// put in order by a second pass: K reads at random in a large state become one in the few numbers of a member.
#pragma once

#include "core/base.h"

namespace lsda {

// Observations of a task, and of a partial sum of a cost: their stencil stays in L2 while the members pass, and they
// touch each page of a member often enough to pay for its translation.
constexpr int64_t kObservationBlock = 8192;

// Observations whose cells stay in L1 from one stencil point to the next.
constexpr int64_t kObservationChunk = 256;

template <class T>
struct ProjectParams {
  T* y;                  // (M, P)
  const T* x;            // (M, N)
  const int32_t* index;  // (K, P)
  const T* weight;       // (K, P)
  int64_t members, cells, observations, points;
  const int32_t* rank = nullptr;  // (P): observation p is number rank[p] of the stencil; null for p itself
};

namespace core {

// Asks for the cells of n observations: places at random have nothing that the processor could foresee.
template <class T>
LSDA_INLINE void obs_prefetch(const ProjectParams<T>& a, const T* x, int64_t begin, int64_t n) {
  for (int64_t k = 0; k < a.points; ++k) {
    const int32_t* index = a.index + k * a.observations + begin;
    for (int64_t i = 0; i < n; ++i) __builtin_prefetch(x + index[i], 0, 2);
  }
}

// n observations of one member to y[0 .. n).
template <class T>
LSDA_INLINE void obs_chunk(const ProjectParams<T>& a, const T* __restrict x, int64_t begin, int64_t n,
                           T* __restrict y) {
  for (int64_t k = 0; k < a.points; ++k) {
    const int32_t* __restrict index = a.index + k * a.observations + begin;
    const T* __restrict weight = a.weight + k * a.observations + begin;
    if (k == 0) {
      for (int64_t i = 0; i < n; ++i) y[i] = weight[i] * x[index[i]];
    } else {
      for (int64_t i = 0; i < n; ++i) y[i] += weight[i] * x[index[i]];
    }
  }
}

// each(begin, n) for the chunks of one block of observations.
template <class T, class F>
LSDA_INLINE void obs_chunks(const ProjectParams<T>& a, int64_t block, const F& each) {
  const int64_t first = block * kObservationBlock, last = smaller(a.observations, first + kObservationBlock);
  for (int64_t begin = first; begin < last; begin += kObservationChunk) {
    each(begin, smaller(kObservationChunk, last - begin));
  }
}

// One chunk; asks for the cells of the next.
template <class T>
LSDA_INLINE void obs_project_chunk(const ProjectParams<T>& a, int64_t m, int64_t begin, int64_t n) {
  const T* __restrict x = a.x + m * a.cells;
  const int64_t next = begin + n;
  obs_prefetch(a, x, next, smaller(kObservationChunk, a.observations - next));
  obs_chunk(a, x, begin, n, a.y + m * a.observations + begin);
}

// to[p] = from[order[p]] for one block of P observations.
template <class T>
LSDA_INLINE void obs_permute(T* __restrict to, const T* __restrict from, const int32_t* __restrict order, int64_t P,
                             int64_t block) {
  constexpr int64_t kAhead = 64;
  const int64_t first = block * kObservationBlock, last = smaller(P, first + kObservationBlock);
  for (int64_t p = first; p < last; ++p) {
    __builtin_prefetch(from + order[smaller(p + kAhead, P - 1)], 0, 2);
    to[p] = from[order[p]];
  }
}

// One block of one member.
template <class T>
LSDA_INLINE void obs_project(const ProjectParams<T>& a, int64_t m, int64_t block) {
  obs_chunks(a, block, [&](int64_t begin, int64_t n) LSDA_INLINED { obs_project_chunk(a, m, begin, n); });
}

// The stencil of one observation, for a CUDA thread: K points in registers; K = 0 is one of any other size, read anew
// for every member.
template <class T, int K>
struct Stencil {
  static constexpr int kPoints = K > 0 ? K : 1;
  const int32_t* __restrict index;
  const T* __restrict weight;
  int64_t stride, points;
  int32_t cell[kPoints] = {};
  T w[kPoints] = {};

  LSDA_HOST_DEVICE LSDA_INLINE Stencil(const ProjectParams<T>& a, int64_t p)
      : index(a.index + p), weight(a.weight + p), stride(a.observations), points(K > 0 ? K : a.points) {
    for (int k = 0; k < K; ++k) {
      cell[k] = index[k * stride];
      w[k] = weight[k * stride];
    }
  }

  // The observation of a member x.
  LSDA_HOST_DEVICE LSDA_INLINE T of(const T* __restrict x) const {
    T sum = T(0);
#ifdef __CUDA_ARCH__
#pragma unroll(K > 0 ? K : 4)
#endif
    for (int64_t k = 0; k < points; ++k) {
      const T term = K > 0 ? w[k % kPoints] * x[cell[k % kPoints]] : weight[k * stride] * x[index[k * stride]];
      sum = k == 0 ? term : sum + term;
    }
    return sum;
  }
};

// What a CUDA thread does: observation p of members [first, last), 64 bytes gathered at a time.
template <class T, int K>
LSDA_HOST_DEVICE LSDA_INLINE void obs_project_thread(const ProjectParams<T>& a, int64_t p, int64_t first,
                                                     int64_t last) {
  const Stencil<T, K> stencil(a, p);
  const T* __restrict x = a.x + first * a.cells;
  T* __restrict y = a.y + first * a.observations + p;
#ifdef __CUDA_ARCH__
#pragma unroll(K > 0 ? 64 / sizeof(T) / K : 1)
#endif
  for (int64_t m = first; m < last; ++m) {
    *y = stencil.of(x);
    x += a.cells;
    y += a.observations;
  }
}

}  // namespace core
}  // namespace lsda
