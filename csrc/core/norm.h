// SPDX-License-Identifier: Apache-2.0
// Normalisation of slices, with what follows it, and its derivatives:
//   n = (x - mean) / sqrt(variance + eps),  p = a n + b,  y = p or silu(p).
// With s = 1 or silu'(p), D = diag(a s) and P v = (v - mean(v) - n mean(n v)) / sqrt(variance + eps), which is its own
// transpose, the JVP is D P and the VJP P D. A slice is a token's channels (layer normalisation), or a group of
// channels at all places, whose channels lie one after the other (planes) or side by side (last).
//
// Sums are in float64 and in one order for every vector width and task. The variance is that around the slice's first
// element, corrected: that it lies far from the mean costs no more than a factor of the slice's size in precision.
#pragma once

#include "core/base.h"
#include "core/sigmoid.h"

namespace lsda {

enum class Layout : int { tokens, planes, last };

// y, and the products of its derivative.
enum class Product : int { value, jvp, vjp };

// Channels that are worked on together where they lie side by side.
constexpr int64_t kColumns = 512;

template <class T>
struct NormParams {
  T* out;
  const T *t, *x;                              // what a derivative is applied to; both in the layout of out
  const T *a, *b;                              // (rows / share, groups width)
  int64_t rows, share, groups, width, places;  // width: channels of a group
  double eps;
  Layout layout;
  bool silu;
};

namespace core {

// Slices that are worked on together: `segments` runs of `length` elements, `stride` apart.
template <Layout L, class T>
struct Piece {
  // Where channels lie side by side every column has its statistics, else the slice has one.
  static constexpr bool kColumnar = L == Layout::last, kRun = L == Layout::planes;
  static constexpr int64_t kSlots = kColumnar ? kColumns : 1;

  int64_t offset, affine, segments, length, stride, width, size;  // size: elements of a slice
  // Aligned, or GCC goes up to the first whole vector element by element.
  alignas(64) T mean[kSlots], scale[kSlots], m1[kSlots], m2[kSlots];
  alignas(64) double origin[kSlots], s1[kSlots], s2[kSlots];

  LSDA_INLINE int64_t slots() const { return kColumnar ? length : 1; }
};

// Slices [first, last): one, or some of one row.
template <Layout L, class T>
LSDA_INLINE void locate(Piece<L, T>& piece, const NormParams<T>& a, int64_t first, int64_t last) {
  const int64_t row = first / a.groups, group = first % a.groups, channels = a.groups * a.width;
  piece.affine = row / a.share * channels + group * a.width;
  piece.width = a.width;
  piece.size = a.width * a.places;
  if (L == Layout::last) {
    piece.offset = row * a.places * channels + group * a.width;
    piece.segments = a.places;
    piece.length = (last - first) * a.width;
    piece.stride = channels;
  } else {
    piece.offset = first * piece.size;
    piece.segments = L == Layout::planes ? a.width : 1;
    piece.length = piece.stride = L == Layout::planes ? a.places : a.width;
  }
}

// s1 = sum (g - g0), s2 = sum (g - g0) (x - x0) of each slice, where x0 is `origin` and g0 the same or zero.
template <bool kShift, Layout L, class T>
LSDA_INLINE void sums(Piece<L, T>& piece, const T* g, const T* x) {
  constexpr int64_t kLanes = 16;
  if (Piece<L, T>::kColumnar) {
    double *s1 = piece.s1, *s2 = piece.s2, *origin = piece.origin;
    for (int64_t c = 0; c < piece.length; ++c) s1[c] = s2[c] = 0.0;
    for (int64_t s = 0; s < piece.segments; ++s, g += piece.stride, x += piece.stride) {
#pragma omp simd
      for (int64_t c = 0; c < piece.length; ++c) {
        const double d = static_cast<double>(g[c]) - (kShift ? origin[c] : 0.0);
        s1[c] += d;
        s2[c] += d * (static_cast<double>(x[c]) - origin[c]);
      }
    }
    for (int64_t c = 0; c < piece.length; c += piece.width) {
      double first = 0.0, second = 0.0;
      for (int64_t i = c; i < c + piece.width; ++i) first += s1[i], second += s2[i];
      for (int64_t i = c; i < c + piece.width; ++i) s1[i] = first, s2[i] = second;
    }
  } else {
    double one[kLanes] = {}, two[kLanes] = {};
    const double origin = piece.origin[0], shift = kShift ? origin : 0.0;
    int64_t i = 0;
    for (; i + kLanes <= piece.size; i += kLanes) {
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const double d = static_cast<double>(g[i + l]) - shift;
        one[l] += d;
        two[l] += d * (static_cast<double>(x[i + l]) - origin);
      }
    }
    for (int64_t l = 0; i + l < piece.size; ++l) {
      const double d = static_cast<double>(g[i + l]) - shift;
      one[l] += d;
      two[l] += d * (static_cast<double>(x[i + l]) - origin);
    }
    for (int64_t half = kLanes / 2; half > 0; half /= 2) {
      for (int64_t l = 0; l < half; ++l) one[l] += one[l + half], two[l] += two[l + half];
    }
    piece.s1[0] = one[0];
    piece.s2[0] = two[0];
  }
}

// mean and scale = 1 / sqrt(variance + eps) of each slice; the mean is the new origin.
template <Layout L, class T>
LSDA_INLINE void statistics(Piece<L, T>& piece, const T* x, double eps) {
  for (int64_t c = 0; c < piece.slots(); ++c) piece.origin[c] = static_cast<double>(x[c / piece.width * piece.width]);
  sums<true>(piece, x, x);
  const double n = static_cast<double>(piece.size);
  for (int64_t c = 0; c < piece.slots(); ++c) {
    const double shift = piece.s1[c] / n, variance = piece.s2[c] / n - shift * shift;
    piece.origin[c] += shift;
    piece.mean[c] = static_cast<T>(piece.origin[c]);
    piece.scale[c] = static_cast<T>(1.0 / __builtin_sqrt((variance > 0.0 ? variance : variance * 0.0) + eps));
  }
}

// mean(t) and mean(n t) of each slice.
template <Layout L, class T>
LSDA_INLINE void moments(Piece<L, T>& piece, const T* t, const T* x) {
  sums<false>(piece, t, x);
  const double n = static_cast<double>(piece.size);
  for (int64_t c = 0; c < piece.slots(); ++c) {
    piece.m1[c] = static_cast<T>(piece.s1[c] / n);
    piece.m2[c] = static_cast<T>(piece.s2[c] / n) * piece.scale[c];
  }
}

// out = P t.
template <Layout L, class T>
LSDA_INLINE void project(Piece<L, T>& piece, T* out, const T* t, const T* x) {
  moments(piece, t, x);
  constexpr bool many = Piece<L, T>::kColumnar;
  const T *mean = piece.mean, *scale = piece.scale, *m1 = piece.m1, *m2 = piece.m2;
  const T mean0 = mean[0], scale0 = scale[0], m10 = m1[0], m20 = m2[0];
  const int64_t segments = many ? piece.segments : 1, length = many ? piece.length : piece.size;
  for (int64_t s = 0; s < segments; ++s, out += piece.stride, t += piece.stride, x += piece.stride) {
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) {
      const T r = many ? scale[i] : scale0, normal = (x[i] - (many ? mean[i] : mean0)) * r;
      out[i] = r * (t[i] - (many ? m1[i] : m10) - normal * (many ? m2[i] : m20));
    }
  }
}

// out = y, or D t.
template <bool kSilu, bool kSlope, Layout L, class T>
LSDA_INLINE void activate(const Piece<L, T>& piece, T* out, const T* t, const T* x, const T* a, const T* b) {
  constexpr bool many = Piece<L, T>::kColumnar, run = Piece<L, T>::kRun;
  const T *mean = piece.mean, *scale = piece.scale;
  const T mean0 = mean[0], scale0 = scale[0];
  for (int64_t s = 0; s < piece.segments; ++s) {
    const int64_t k = s * piece.stride;
    const T a0 = a[run ? s : 0], b0 = b[run ? s : 0];
#pragma omp simd
    for (int64_t i = 0; i < piece.length; ++i) {
      const T ai = run ? a0 : a[i];
      if (kSlope && !kSilu) {
        out[k + i] = t[k + i] * ai;
      } else {
        const T p = (x[k + i] - (many ? mean[i] : mean0)) * (many ? scale[i] : scale0) * ai + (run ? b0 : b[i]);
        out[k + i] = kSlope ? t[k + i] * (ai * silu_slope(p)) : kSilu ? silu(p) : p;
      }
    }
  }
}

// out = D P t.
template <bool kSilu, Layout L, class T>
LSDA_INLINE void tangent(Piece<L, T>& piece, T* out, const T* t, const T* x, const T* a, const T* b) {
  moments(piece, t, x);
  constexpr bool many = Piece<L, T>::kColumnar, run = Piece<L, T>::kRun;
  const T *mean = piece.mean, *scale = piece.scale, *m1 = piece.m1, *m2 = piece.m2;
  const T mean0 = mean[0], scale0 = scale[0], m10 = m1[0], m20 = m2[0];
  for (int64_t s = 0; s < piece.segments; ++s, out += piece.stride, t += piece.stride, x += piece.stride) {
    const T a0 = a[run ? s : 0], b0 = b[run ? s : 0];
#pragma omp simd
    for (int64_t i = 0; i < piece.length; ++i) {
      const T r = many ? scale[i] : scale0, normal = (x[i] - (many ? mean[i] : mean0)) * r, ai = run ? a0 : a[i];
      const T projected = r * (t[i] - (many ? m1[i] : m10) - normal * (many ? m2[i] : m20));
      out[i] = projected * (kSilu ? ai * silu_slope(normal * ai + (run ? b0 : b[i])) : ai);
    }
  }
}

template <Product kProduct, bool kSilu, Layout L, class T>
LSDA_INLINE void norm_slices(const NormParams<T>& p, int64_t first, int64_t last) {
  Piece<L, T> piece;
  const int64_t step = L == Layout::last ? last - first : 1;
  for (int64_t slice = first; slice < last; slice += step) {
    locate(piece, p, slice, slice + step);
    T* out = p.out + piece.offset;
    const T *x = p.x + piece.offset, *t = p.t + piece.offset, *a = p.a + piece.affine, *b = p.b + piece.affine;
    statistics(piece, x, p.eps);
    if (kProduct == Product::value) {
      activate<kSilu, false>(piece, out, t, x, a, b);
    } else if (kProduct == Product::jvp) {
      tangent<kSilu>(piece, out, t, x, a, b);
    } else {
      activate<kSilu, true>(piece, out, t, x, a, b);
      project(piece, out, out, x);
    }
  }
}

template <Product kProduct, class T>
LSDA_INLINE void norm_product(const NormParams<T>& p, int64_t first, int64_t last) {
  switch (p.layout) {
    case Layout::tokens:
      return p.silu ? norm_slices<kProduct, true, Layout::tokens>(p, first, last)
                    : norm_slices<kProduct, false, Layout::tokens>(p, first, last);
    case Layout::planes:
      return p.silu ? norm_slices<kProduct, true, Layout::planes>(p, first, last)
                    : norm_slices<kProduct, false, Layout::planes>(p, first, last);
    case Layout::last:
      return p.silu ? norm_slices<kProduct, true, Layout::last>(p, first, last)
                    : norm_slices<kProduct, false, Layout::last>(p, first, last);
  }
}

template <class T>
LSDA_INLINE void norm_value(const NormParams<T>& p, int64_t first, int64_t last) {
  norm_product<Product::value>(p, first, last);
}

template <class T>
LSDA_INLINE void norm_jvp(const NormParams<T>& p, int64_t first, int64_t last) {
  norm_product<Product::jvp>(p, first, last);
}

template <class T>
LSDA_INLINE void norm_vjp(const NormParams<T>& p, int64_t first, int64_t last) {
  norm_product<Product::vjp>(p, first, last);
}

}  // namespace core
}  // namespace lsda
