// SPDX-License-Identifier: Apache-2.0
// Products with a covariance, or its root, that is the same at every longitude: Fourier transform in longitude, and for
// each wavenumber after (left middle right^H + floor) before of what is at its rows and channels, in real arithmetic.
#pragma once

#include "core/product.h"

namespace lsda {

template <class T>
struct ZonalParams {
  T* out;
  const T* x;                     // (members, rows, columns, channels)
  const T *analysis, *synthesis;  // (2 waves, columns), real parts first, and (columns, 2 waves)
  const void* right;              // (waves, modes / 16, size, 16), size = rows channels
  const T* middle;
  const void* left;                                        // (waves, size / 16, modes, 16)
  const T *floor, *before, *after;                         // (waves, size), (size) twice or null
  int64_t members, rows, columns, channels, waves, modes;  // modes: real parts and imaginary parts
  bool full;    // middle is a matrix, (waves, modes / 16, modes, 16), else a factor of each mode, (waves, modes)
  bool narrow;  // right and left are float, whatever T is
  T* scratch;   // zonal_scratch
};

// From one member's modes to the next, and from one wavenumber's: what is read together does not fall into the same few
// sets of a cache.
template <class T>
constexpr int64_t zonal_pitch(const ZonalParams<T>& a) {
  return a.rows * a.channels + kTogetherColumns;
}
template <class T>
constexpr int64_t zonal_step(const ZonalParams<T>& a) {
  return 2 * a.members * zonal_pitch(a) + 5 * kTogetherColumns;
}

template <class T>
constexpr int64_t zonal_scratch(const ZonalParams<T>& a) {
  return a.waves * (zonal_step(a) + 6 * a.members * a.modes);
}

namespace core {

// The real and imaginary part of V^H x from products (2, modes) of those of x with those of V.
template <class T>
LSDA_INLINE void zonal_coefficients(T* out, const T* in, int64_t modes) {
  const int64_t half = modes / 2;
  const T *rr = in, *ri = in + half, *ir = in + modes, *ii = in + modes + half;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    out[i] = rr[i] + ii[i];
    out[half + i] = ir[i] - ri[i];
  }
}

// What V's real and imaginary parts are multiplied with for those of V c: (2, modes) from c; the factor may be null.
template <class T>
LSDA_INLINE void zonal_weights(T* out, const T* c, const T* factor, int64_t modes) {
  const int64_t half = modes / 2;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const T a = factor ? c[i] * factor[i] : c[i], b = factor ? c[half + i] * factor[half + i] : c[half + i];
    out[i] = a;
    out[half + i] = -b;
    out[modes + i] = b;
    out[modes + half + i] = a;
  }
}

template <class T>
LSDA_INLINE void zonal_scale(T* out, const T* factor, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) out[i] = out[i] * factor[i];
}

}  // namespace core
}  // namespace lsda
