// SPDX-License-Identifier: Apache-2.0
// The step of a transformer's residual stream, and its derivatives with the D and P of norm.h at y:
//
//   value  y = x + gate branch,  n = a (y - mean) / sqrt(variance + eps) + b
//   JVP    y' = x' + gate branch',  n' = D P y'
//   VJP    x' = y' + P D n',  branch' = gate x'
#pragma once

#include "core/norm.h"

namespace lsda {

template <class T>
struct GatedParams {
  T *first, *second;      // (rows, channels): y and n, or their derivatives; x and branch's for the VJP
  const T *left, *right;  // (rows, channels): x and branch, or their derivatives; y and n's for the VJP
  const T* y;             // (rows, channels), for the derivatives
  const T *gate, *a, *b;  // (rows / share, channels); a gate of null is 1
  int64_t rows, share, channels;
  double eps;
};

namespace core {

// out = left + gate right.
template <class T>
LSDA_INLINE void residual(T* out, const T* left, const T* gate, const T* right, int64_t n) {
  if (gate) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = left[i] + gate[i] * right[i];
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = left[i] + right[i];
  }
}

template <Product kProduct, class T>
LSDA_INLINE void gated_rows(const GatedParams<T>& p, int64_t first, int64_t last) {
  Piece<Layout::tokens, T> piece;
  const int64_t n = p.channels;
  piece.segments = 1;
  piece.length = piece.stride = piece.width = piece.size = n;
  for (int64_t row = first; row < last; ++row) {
    const int64_t offset = row * n, affine = row / p.share * n;
    T *one = p.first + offset, *two = p.second + offset;
    const T *left = p.left + offset, *right = p.right + offset, *a = p.a + affine;
    const T* gate = p.gate ? p.gate + affine : nullptr;
    if (kProduct == Product::vjp) {
      const T* y = p.y + offset;
      statistics(piece, y, p.eps);
      activate<false, true>(piece, two, right, y, a, a, 1);
      moments(piece, two, y);
      project<false>(piece, two, two, y, y);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        one[i] = left[i] + two[i];
        two[i] = gate ? gate[i] * one[i] : one[i];
      }
      continue;
    }
    residual(one, left, gate, right, n);
    const T* y = kProduct == Product::jvp ? p.y + offset : one;
    statistics(piece, y, p.eps);
    if (kProduct == Product::jvp) {
      moments(piece, one, y);
      project<false>(piece, two, one, y, y);
      activate<false, true>(piece, two, two, y, a, a, 1);
    } else {
      activate<false, false>(piece, two, y, y, a, p.b + affine, 1);
    }
  }
}

template <class T>
LSDA_INLINE void gated_value(const GatedParams<T>& p, int64_t first, int64_t last) {
  gated_rows<Product::value>(p, first, last);
}

template <class T>
LSDA_INLINE void gated_jvp(const GatedParams<T>& p, int64_t first, int64_t last) {
  gated_rows<Product::jvp>(p, first, last);
}

template <class T>
LSDA_INLINE void gated_vjp(const GatedParams<T>& p, int64_t first, int64_t last) {
  gated_rows<Product::vjp>(p, first, last);
}

}  // namespace core
}  // namespace lsda
