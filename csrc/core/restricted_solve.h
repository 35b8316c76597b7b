// SPDX-License-Identifier: Apache-2.0
// Conjugate gradients among the observations (restricted_step.h) with the product that they are for in between,
//
//   F F'w = slope factor H W C W' H' slope w,
//
// H the observations of cells (obs_project.h), W a layer at those cells (head.h), C a covariance (zonal.h).
#pragma once

#include "core/head.h"
#include "core/obs_adjoint.h"
#include "core/obs_project.h"
#include "core/restricted_step.h"
#include "core/zonal.h"

namespace lsda {

template <class T>
struct SolveParams {
  T* x;                             // (members, P + 1)
  const T *f, *rr, *limit, *slope;  // (members, P), (members) twice, (members, P)
  double factor;
  int64_t iterations, members, size;  // size: P
  ProjectParams<T> project;           // these without what they read and write
  AdjointParams<T> adjoint;
  HeadParams<T> head;  // features last
  ZonalParams<T> zonal;
};

namespace core {

// x = 0, r = p = (0, 1; f, rr) of one member.
template <class T>
LSDA_INLINE void restricted_begin(const SolveParams<T>& a, T* r, T* p, int64_t m) {
  const int64_t n = a.size + 1, other = a.members * n;
  T *x = a.x + m * n, *r0 = r + m * n, *r1 = r0 + other, *p0 = p + m * n, *p1 = p0 + other;
  const T* f = a.f + m * a.size;
  for (int64_t i = 0; i < a.size; ++i) {
    x[i] = r0[i] = p0[i] = T(0);
    r1[i] = p1[i] = f[i];
  }
  x[a.size] = T(0);
  r0[a.size] = p0[a.size] = T(1);
  r1[a.size] = p1[a.size] = a.rr[m];
}

// out = slope (factor in)
template <class T>
LSDA_INLINE void sloped(T* out, const T* in, const T* slope, T factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = slope[i] * (factor * in[i]);
}

}  // namespace core
}  // namespace lsda
