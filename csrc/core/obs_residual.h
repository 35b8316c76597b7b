// SPDX-License-Identifier: Apache-2.0
// Weighted departures of observations, behind obs_project in the same pass, or in one of their own where the stencil is
// sorted by place:
//
//   d = (y - target[p]) precision[p] - noise[m, p],   r = w(d)^1/2 d,   slope = w(d)^1/2 precision[p],
//
// and the sum of 2 rho(d) over a block of observations. Precision 0 takes an observation out.
#pragma once

#include "core/dot.h"
#include "core/obs_project.h"
#include "core/robust.h"

namespace lsda {

template <class T>
struct ResidualParams {
  ProjectParams<T> project;  // whose y becomes r
  T* slope;                  // (M, P); null where the weights are 1
  double* twice;             // (M, blocks of observations)
  const T* target;           // (P)
  const T* precision;        // (P), or null
  const T* noise;            // (M, P), or null
  Robust kind;
  double number;  // delta or gamma
};

namespace core {

// y to d.
template <class T>
LSDA_INLINE void departures(const ResidualParams<T>& a, int64_t m, int64_t begin, int64_t n, T* __restrict y) {
  const T* __restrict target = a.target + begin;
  for (int64_t i = 0; i < n; ++i) y[i] -= target[i];
  if (a.precision) {
    const T* __restrict precision = a.precision + begin;
    for (int64_t i = 0; i < n; ++i) y[i] *= precision[i];
  }
  if (a.noise) {
    const T* __restrict noise = a.noise + m * a.project.observations + begin;
    for (int64_t i = 0; i < n; ++i) y[i] -= noise[i];
  }
  if (a.precision) {
    const T* __restrict precision = a.precision + begin;
    for (int64_t i = 0; i < n; ++i) y[i] = precision[i] == T(0) ? T(0) : y[i];
  }
}

// d to r, with the slope, and twice the cost of each.
template <Robust kind, class T>
LSDA_INLINE void weigh(const ResidualParams<T>& a, int64_t m, int64_t begin, int64_t n, T* __restrict y,
                       double* __restrict twice) {
  double root[kObservationChunk];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) Cost<kind>::of(static_cast<double>(y[i]), a.number, root[i], twice[i]);
  if (kind == Robust::gaussian) return;
  T* __restrict slope = a.slope + m * a.project.observations + begin;
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<T>(root[i] * static_cast<double>(y[i]));
  if (a.precision) {
    const T* __restrict precision = a.precision + begin;
    for (int64_t i = 0; i < n; ++i) slope[i] = static_cast<T>(root[i] * static_cast<double>(precision[i]));
  } else {
    for (int64_t i = 0; i < n; ++i) slope[i] = static_cast<T>(root[i]);
  }
}

template <Robust kind, class T>
LSDA_INLINE void obs_residual_of(const ResidualParams<T>& a, int64_t m, int64_t block) {
  Lanes sum;
  obs_chunks(a.project, block, [&](int64_t begin, int64_t n) LSDA_INLINED {
    double twice[kObservationChunk];
    T* y = a.project.y + m * a.project.observations + begin;
    if (a.project.rank == nullptr) obs_project_chunk(a.project, m, begin, n);
    departures(a, m, begin, n, y);
    weigh<kind>(a, m, begin, n, y, twice);
    sum.add(n, [&](int64_t i) LSDA_INLINED { return twice[i]; });
  });
  a.twice[m * blocks_of(a.project.observations, kObservationBlock) + block] = sum.total();
}

// One block of observations of one member.
template <class T>
LSDA_INLINE void obs_residual(const ResidualParams<T>& a, int64_t m, int64_t block) {
  switch (a.kind) {
    case Robust::gaussian:
      return obs_residual_of<Robust::gaussian>(a, m, block);
    case Robust::huber:
      return obs_residual_of<Robust::huber>(a, m, block);
    case Robust::variational:
      return obs_residual_of<Robust::variational>(a, m, block);
  }
}

// What a CUDA thread does: observation p of a few members from the first on, as many as are left, with twice the cost
// of each. All are gathered before one is weighed; members beyond the last cost nothing.
constexpr int kResidualMembers = 2;

template <Robust kind, class T, int K>
LSDA_HOST_DEVICE LSDA_INLINE void obs_residual_thread(const ResidualParams<T>& a, const Stencil<T, K>& stencil,
                                                      int64_t p, int64_t first, int64_t left,
                                                      double (&twice)[kResidualMembers]) {
  const int64_t N = a.project.cells, P = a.project.observations;
  const T target = a.target[p], precision = a.precision ? a.precision[p] : T(1);
  T y[kResidualMembers] = {}, noise[kResidualMembers] = {};
  for (int j = 0; j < kResidualMembers; ++j) {
    if (j >= left) continue;
    y[j] = stencil.of(a.project.x + (first + j) * N);
    if (a.noise) noise[j] = a.noise[(first + j) * P + p];
  }
  for (int j = 0; j < kResidualMembers; ++j) {
    twice[j] = 0.0;
    if (j >= left) continue;
    const T d = precision == T(0) ? T(0) : (y[j] - target) * precision - noise[j];
    const int64_t at = (first + j) * P + p;
    double root;
    Cost<kind>::of(static_cast<double>(d), a.number, root, twice[j]);
    a.project.y[at] = kind == Robust::gaussian ? d : static_cast<T>(root * static_cast<double>(d));
    if (kind != Robust::gaussian) a.slope[at] = static_cast<T>(root * static_cast<double>(precision));
  }
}

}  // namespace core
}  // namespace lsda
