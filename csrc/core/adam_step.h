// SPDX-License-Identifier: Apache-2.0
// One step of Adam (Kingma & Ba 2015) on gradient + decay v:
//
//   m += (1 - beta1) (g - m);  s = beta2 s + (1 - beta2) g^2;  v -= rate m / (sqrt(s) / spread + eps),
//
// rate = lr / (1 - beta1^t), spread = sqrt(1 - beta2^t). The outputs may be the inputs.
#pragma once

#include "core/base.h"

namespace lsda {

template <class T>
struct AdamParams {
  T *v, *m, *s;  // out, (n)
  const T *v0, *m0, *s0, *gradient;
  T rate, spread, new1, beta2, new2, eps, decay;  // new = 1 - beta, rounded once
  int64_t size;
};

namespace core {

// One block of elements.
template <class T>
LSDA_INLINE void adam_step(const AdamParams<T>& a, int64_t block) {
  const int64_t first = block * kBlock, last = first + smaller(kBlock, a.size - first);
#pragma omp simd
  for (int64_t i = first; i < last; ++i) {
    const T g = a.gradient[i] + a.decay * a.v0[i];
    const T m = a.m0[i] + a.new1 * (g - a.m0[i]);
    const T s = a.beta2 * a.s0[i] + a.new2 * (g * g);
    a.m[i] = m;
    a.s[i] = s;
    a.v[i] = a.v0[i] - a.rate * m / (static_cast<T>(__builtin_sqrt(s)) / a.spread + a.eps);
  }
}

}  // namespace core
}  // namespace lsda
