// SPDX-License-Identifier: Apache-2.0
// The vector updates of one iteration of conjugate gradients among the rows of F, for (I + F'F) x = b, of one member. A
// vector F'q + a b is (q, a), size numbers, beside its products (F u, b'u); r and p are (2, members, size).
//
//   w = p1 without its last;  step = rr / (p0'p1 + w'w);  x += step p0;  r -= step (p + (w, 0; F F'w, f'w));
//   rr' = r0'r1;  p = r + (rr' / rr) p,
//
// while rr > limit and the curvature is positive.
#pragma once

#include "core/base.h"
#include "core/dot.h"

namespace lsda {

template <class T>
struct RestrictedParams {
  T *x, *r, *p, *rr;                             // out
  const T *x0, *r0, *p0, *rr0, *Gw, *f, *limit;  // in; Gw = F F'w and f: (members, size - 1)
  int64_t members, size;
};

namespace core {

template <class T>
LSDA_INLINE void restricted_member(const RestrictedParams<T>& a, int64_t m) {
  const int64_t n = a.size, last = n - 1, other = a.members * n;
  const T *p0 = a.p0 + m * n, *p1 = p0 + other, *r0 = a.r0 + m * n, *r1 = r0 + other, *x0 = a.x0 + m * n;
  const T *Gw = a.Gw + m * last, *f = a.f + m * last;
  T *x = a.x + m * n, *r = a.r + m * n, *s = r + other, *p = a.p + m * n, *q = p + other;
  const double rr = static_cast<double>(a.rr0[m]), curvature = dot(p0, p1, n) + dot(p1, p1, last);
  const bool going = a.rr0[m] > a.limit[m];
  const T step = static_cast<T>(going && curvature > 0.0 ? rr / curvature : 0.0);
  const T along = static_cast<T>(dot(f, p1, last));
#pragma omp simd
  for (int64_t i = 0; i < last; ++i) {
    x[i] = x0[i] + step * p0[i];
    r[i] = r0[i] - step * (p0[i] + p1[i]);
    s[i] = r1[i] - step * (p1[i] + Gw[i]);
  }
  x[last] = x0[last] + step * p0[last];
  r[last] = r0[last] - step * p0[last];
  s[last] = r1[last] - step * (p1[last] + along);
  a.rr[m] = going ? static_cast<T>(dot(r, s, n)) : a.rr0[m];
  const double least = 1e-38, turn = static_cast<double>(a.rr[m]) / (rr > least ? rr : least);
  const T back = static_cast<T>(going ? turn : 1.0), ahead = static_cast<T>(going ? 1.0 : 0.0);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    p[i] = ahead * r[i] + back * p0[i];
    q[i] = ahead * s[i] + back * p1[i];
  }
}

// The step along p that ends the iterations: x alone.
template <class T>
LSDA_INLINE void restricted_last(const RestrictedParams<T>& a, int64_t m) {
  const int64_t n = a.size;
  const T *p0 = a.p0 + m * n, *p1 = p0 + a.members * n, *x0 = a.x0 + m * n;
  const double rr = static_cast<double>(a.rr0[m]), curvature = dot(p0, p1, n) + dot(p1, p1, n - 1);
  const T step = static_cast<T>(a.rr0[m] > a.limit[m] && curvature > 0.0 ? rr / curvature : 0.0);
  T* x = a.x + m * n;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] = x0[i] + step * p0[i];
}

}  // namespace core
}  // namespace lsda
