// SPDX-License-Identifier: Apache-2.0
// The slices of a normalisation and their sums. A slice is a token's channels (layer normalisation), or a group of
// channels at all places, whose channels lie one after the other (planes) or side by side (last).
//
// Sums are in float64 and in one order for every vector width and task. The variance is that around the slice's first
// element, corrected: that it lies far from the mean costs no more than a factor of the slice's size in precision.
#pragma once

#include "core/base.h"
#include "core/bfloat16.h"

namespace lsda {

enum class Layout : int { tokens, planes, last };

// Channels that are worked on together where they lie side by side.
constexpr int64_t kColumns = 512;

namespace core {

// Slices that are worked on together: `segments` runs of `length` elements, `stride` apart.
template <Layout L, class T>
struct Piece {
  // Where channels lie side by side every column has its statistics, else the slice has one.
  static constexpr bool kColumnar = L == Layout::last, kRun = L == Layout::planes;
  static constexpr int64_t kSlots = kColumnar ? kColumns : 1;

  int64_t segments, length, stride, width, size;  // size: elements of a slice
  // Aligned, or GCC goes up to the first whole vector element by element.
  alignas(64) T mean[kSlots], scale[kSlots], m1[kSlots], m2[kSlots];
  alignas(64) double origin[kSlots], s1[kSlots], s2[kSlots];

  LSDA_INLINE int64_t slots() const { return kColumnar ? length : 1; }
};

template <class S>
LSDA_INLINE void add_term(double& one, double& two, S g, S x, double shift, double origin) {
  const double d = static_cast<double>(g) - shift;
  one += d;
  two += d * (static_cast<double>(x) - origin);
}

// Columns: adds g - g0 to s1 and (g - g0) (x - x0) to s2, of so many runs. Four at a time, in their order.
template <bool kShift, Layout L, class T, class S>
LSDA_INLINE void accumulate(Piece<L, T>& piece, const S* g, const S* x, int64_t runs) {
  double *s1 = piece.s1, *s2 = piece.s2, *origin = piece.origin;
  const int64_t n = piece.length, stride = piece.stride;
  for (; runs >= 4; runs -= 4, g += 4 * stride, x += 4 * stride) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) {
      const double o = origin[c], shift = kShift ? o : 0.0;
      double one = s1[c], two = s2[c];
      add_term(one, two, g[c], x[c], shift, o);
      add_term(one, two, g[c + stride], x[c + stride], shift, o);
      add_term(one, two, g[c + 2 * stride], x[c + 2 * stride], shift, o);
      add_term(one, two, g[c + 3 * stride], x[c + 3 * stride], shift, o);
      s1[c] = one;
      s2[c] = two;
    }
  }
  for (; runs > 0; --runs, g += stride, x += stride) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) add_term(s1[c], s2[c], g[c], x[c], kShift ? origin[c] : 0.0, origin[c]);
  }
}

template <Layout L, class T>
LSDA_INLINE void clear(Piece<L, T>& piece) {
  for (int64_t c = 0; c < piece.length; ++c) piece.s1[c] = piece.s2[c] = 0.0;
}

// The sums of a slice from those of its columns.
template <Layout L, class T>
LSDA_INLINE void gather(Piece<L, T>& piece) {
  for (int64_t c = 0; c < piece.length; c += piece.width) {
    double one = 0.0, two = 0.0;
    for (int64_t i = c; i < c + piece.width; ++i) one += piece.s1[i], two += piece.s2[i];
    for (int64_t i = c; i < c + piece.width; ++i) piece.s1[i] = one, piece.s2[i] = two;
  }
}

// s1 = sum (g - g0), s2 = sum (g - g0) (x - x0) of each slice, where x0 is `origin` and g0 the same or zero.
template <bool kShift, Layout L, class T, class S>
LSDA_INLINE void sums(Piece<L, T>& piece, const S* g, const S* x) {
  constexpr int64_t kLanes = 16;
  if (Piece<L, T>::kColumnar) {
    clear(piece);
    accumulate<kShift>(piece, g, x, piece.segments);
    gather(piece);
  } else {
    double one[kLanes] = {}, two[kLanes] = {};
    const double origin = piece.origin[0], shift = kShift ? origin : 0.0;
    int64_t i = 0;
    for (; i + kLanes <= piece.size; i += kLanes) {
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        add_term(one[l], two[l], g[i + l], x[i + l], shift, origin);
      }
    }
    for (int64_t l = 0; i + l < piece.size; ++l) {
      add_term(one[l], two[l], g[i + l], x[i + l], shift, origin);
    }
    for (int64_t half = kLanes / 2; half > 0; half /= 2) {
      for (int64_t l = 0; l < half; ++l) one[l] += one[l + half], two[l] += two[l + half];
    }
    piece.s1[0] = one[0];
    piece.s2[0] = two[0];
  }
}

// mean and scale = 1 / sqrt(variance + eps) of each slice.
template <Layout L, class T, class S>
LSDA_INLINE void statistics(Piece<L, T>& piece, const S* x, double eps) {
  for (int64_t c = 0; c < piece.slots(); ++c) piece.origin[c] = static_cast<double>(x[c / piece.width * piece.width]);
  sums<true>(piece, x, x);
  const double n = static_cast<double>(piece.size);
  for (int64_t c = 0; c < piece.slots(); ++c) {
    const double shift = piece.s1[c] / n, variance = piece.s2[c] / n - shift * shift;
    piece.mean[c] = static_cast<T>(piece.origin[c] + shift);
    piece.scale[c] = static_cast<T>(1.0 / __builtin_sqrt((variance > 0.0 ? variance : variance * 0.0) + eps));
  }
}

// To and from two numbers a slice.
template <Layout L, class T>
LSDA_INLINE void keep(const Piece<L, T>& piece, T* kept) {
  for (int64_t c = 0; c < piece.slots(); c += piece.width, kept += 2) {
    kept[0] = piece.mean[c];
    kept[1] = piece.scale[c];
  }
}

template <Layout L, class T>
LSDA_INLINE void recall(Piece<L, T>& piece, const T* kept) {
  for (int64_t c = 0; c < piece.slots(); ++c) {
    piece.mean[c] = kept[c / piece.width * 2];
    piece.scale[c] = kept[c / piece.width * 2 + 1];
  }
}

// x0 is the mean.
template <Layout L, class T>
LSDA_INLINE void centre(Piece<L, T>& piece) {
  for (int64_t c = 0; c < piece.slots(); ++c) piece.origin[c] = static_cast<double>(piece.mean[c]);
}

// mean(t) and mean(n t) of each slice, from its sums.
template <Layout L, class T>
LSDA_INLINE void average(Piece<L, T>& piece) {
  const double n = static_cast<double>(piece.size);
  for (int64_t c = 0; c < piece.slots(); ++c) {
    piece.m1[c] = static_cast<T>(piece.s1[c] / n);
    piece.m2[c] = static_cast<T>(piece.s2[c] / n) * piece.scale[c];
  }
}

template <Layout L, class T, class S>
LSDA_INLINE void moments(Piece<L, T>& piece, const S* t, const S* x) {
  centre(piece);
  sums<false>(piece, t, x);
  average(piece);
}

}  // namespace core
}  // namespace lsda
