// SPDX-License-Identifier: Apache-2.0
// The vector updates of one conjugate-gradient iteration of one member, given A p:
//
//   step = rr / p'Ap;  x += step p;  r -= step Ap;  p = r + (r'r / rr) p;  rr = r'r,
//
// while rr > limit and p'Ap > 0; else nothing changes. The outputs may be the inputs.
#pragma once

#include "core/base.h"
#include "core/dot.h"

namespace lsda {

template <class T>
struct CgParams {
  T *x, *r, *p, *rr;            // out: (M, n) three times, (M)
  const T *x0, *r0, *p0, *rr0;  // in
  const T *Ap, *limit;          // (M, n), (M)
  int64_t members, size;
};

namespace core {

// p'Ap over one block.
template <class T>
LSDA_INLINE double cg_curvature(const CgParams<T>& a, int64_t m, int64_t block) {
  const int64_t first = block * kBlock, offset = m * a.size + first;
  return dot(a.p0 + offset, a.Ap + offset, smaller(kBlock, a.size - first));
}

// x and r of one block; r'r over it.
template <class T>
LSDA_INLINE double cg_advance(const CgParams<T>& a, int64_t m, int64_t block, T step) {
  const int64_t first = block * kBlock, offset = m * a.size + first, n = smaller(kBlock, a.size - first);
  const T *x0 = a.x0 + offset, *r0 = a.r0 + offset, *p0 = a.p0 + offset, *Ap = a.Ap + offset;
  T *x = a.x + offset, *r = a.r + offset;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    x[i] = x0[i] + step * p0[i];
    r[i] = r0[i] - step * Ap[i];
  }
  return dot(r, r, n);
}

// p of one block.
template <class T>
LSDA_INLINE void cg_turn(const CgParams<T>& a, int64_t m, int64_t block, T turn) {
  const int64_t first = block * kBlock, offset = m * a.size + first, n = smaller(kBlock, a.size - first);
  const T *r = a.r + offset, *p0 = a.p0 + offset;
  T* p = a.p + offset;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) p[i] = r[i] + turn * p0[i];
}

}  // namespace core
}  // namespace lsda
