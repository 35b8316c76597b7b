// SPDX-License-Identifier: Apache-2.0
// Normalisation of slices, with what follows it, and its derivatives:
//   n = (x - mean) / sqrt(variance + eps),  p = a n + b,  y = p or silu(p).
// With s = 1 or silu'(p), D = diag(a s) and P v = (v - mean(v) - n mean(n v)) / sqrt(variance + eps), which is its own
// transpose, the JVP is D P and the VJP P D. The value leaves mean and 1 / sqrt(variance + eps) of each slice for them.
//
// Where the slices are of images, y and the JVP are written with margins, and the VJP is of what has them (geo_pad.h):
// row by row, while the row is in cache.
#pragma once

#include "core/geo_pad.h"
#include "core/norm_sums.h"
#include "core/sigmoid.h"

namespace lsda {

// y, and the products of its derivative.
enum class Product : int { value, jvp, vjp };

// The numbers of images and tokens are kept as S and worked on as T.
template <class T, class S = T>
struct NormParams {
  S* out;
  T* kept;                                // (members, groups, 2), of the value or for a derivative
  const S *t, *x;                         // what a derivative is applied to; x
  const T *a, *b;                         // (members / share, groups width)
  int64_t members, share, groups, width;  // width: channels of a group
  Frame frame;                            // the places of a channel; one row of them where nothing is padded
  double eps;
  Layout layout;
  bool silu;
  const S* add = nullptr;  // what is added to a VJP, or nothing
};

namespace core {

// A piece, and where it begins in x, in what has margins, in a and b, and in what is kept.
template <Layout L, class T>
struct Part : Piece<L, T> {
  int64_t plain, padded, affine, kept, images;
  Pixel pixel;
};

// Slices [first, last): one, or some of one member.
template <Layout L, class T, class S>
LSDA_INLINE void locate(Part<L, T>& part, const NormParams<T, S>& a, int64_t first, int64_t last) {
  const int64_t member = first / a.groups, channel = first % a.groups * a.width, channels = a.groups * a.width;
  const int64_t places = a.frame.places(), padded = a.frame.padded_rows() * a.frame.padded_columns();
  part.affine = member / a.share * channels + channel;
  part.kept = 2 * first;
  part.width = a.width;
  part.size = a.width * places;
  if (L == Layout::last) {
    part.plain = member * channels * places + channel;
    part.padded = member * channels * padded + channel;
    part.images = 1;
    part.segments = places;
    part.length = (last - first) * a.width;
    part.stride = channels;
    part.pixel = {part.length, channels};
  } else {
    part.plain = first * part.size;
    part.padded = first * a.width * padded;
    part.images = part.segments = L == Layout::planes ? a.width : 1;
    part.length = part.stride = L == Layout::planes ? places : a.width;
    part.pixel = {1, 1};
  }
}

// Places that are worked on together where a pass follows another.
constexpr int64_t kTogether = 32;

// Channels side by side that are worked on from place to place.
constexpr int64_t kSide = 16;

// f(k, s, c) for the numbers k of `pixels` places, all of one channel, or of those of a token: s and c say where its
// statistics are, and its channel.
template <Layout L, class T, class F>
LSDA_INLINE void each(const Piece<L, T>& piece, int64_t pixels, const F& f) {
  if (!Piece<L, T>::kColumnar) {
    const int64_t length = Piece<L, T>::kRun ? pixels : piece.length;
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) f(i, 0, Piece<L, T>::kRun ? 0 : i);
    return;
  }
  const int64_t stride = piece.stride;
  int64_t first = 0;
  for (; first + kSide <= piece.length; first += kSide) {
    for (int64_t place = first, i = 0; i < pixels; ++i, place += stride) {
#pragma omp simd
      for (int64_t c = 0; c < kSide; ++c) f(place + c, first + c, first + c);
    }
  }
  const int64_t rest = piece.length - first;
  if (!rest) return;
  for (int64_t place = first, i = 0; i < pixels; ++i, place += stride) {
#pragma omp simd
    for (int64_t c = 0; c < rest; ++c) f(place + c, first + c, first + c);
  }
}

// out = P t, of known moments, and what is added.
template <bool kAdd, Layout L, class T, class S>
LSDA_INLINE void project(Piece<L, T>& piece, S* out, const S* t, const S* x, const S* add) {
  const T *mean = piece.mean, *scale = piece.scale, *m1 = piece.m1, *m2 = piece.m2;
  const auto one = [=](int64_t k, int64_t s, int64_t) LSDA_INLINED {
    const T r = scale[s], normal = (x[k] - mean[s]) * r, projected = r * (t[k] - m1[s] - normal * m2[s]);
    out[k] = kAdd ? projected + add[k] : projected;
  };
  if (Piece<L, T>::kColumnar) return each(piece, piece.segments, one);
#pragma omp simd
  for (int64_t i = 0; i < piece.size; ++i) one(i, 0, 0);
}

// out = y, or D t, of the numbers of `pixels` places, all of one channel, or of those of a token.
template <bool kSilu, bool kSlope, Layout L, class T, class S>
LSDA_INLINE void activate(const Piece<L, T>& piece, S* out, const S* t, const S* x, const T* a, const T* b,
                          int64_t pixels) {
  const T *mean = piece.mean, *scale = piece.scale;
  each(piece, pixels, [=](int64_t k, int64_t s, int64_t c) LSDA_INLINED {
    if (kSlope && !kSilu) {
      out[k] = t[k] * a[c];
    } else {
      const T p = (x[k] - mean[s]) * scale[s] * a[c] + b[c];
      out[k] = kSlope ? t[k] * (a[c] * silu_slope(p)) : kSilu ? silu(p) : p;
    }
  });
}

// out = D P t, likewise.
template <bool kSilu, Layout L, class T, class S>
LSDA_INLINE void tangent(const Piece<L, T>& piece, S* out, const S* t, const S* x, const T* a, const T* b,
                         int64_t pixels) {
  const T *mean = piece.mean, *scale = piece.scale, *m1 = piece.m1, *m2 = piece.m2;
  each(piece, pixels, [=](int64_t k, int64_t s, int64_t c) LSDA_INLINED {
    const T r = scale[s], normal = (x[k] - mean[s]) * r, projected = r * (t[k] - m1[s] - normal * m2[s]);
    out[k] = projected * (kSilu ? a[c] * silu_slope(normal * a[c] + b[c]) : a[c]);
  });
}

// out = D t of a row, and its sums where columns have theirs.
template <bool kSilu, Layout L, class T, class S>
LSDA_INLINE void weigh(Part<L, T>& part, S* out, const S* t, const S* x, const T* a, const T* b, int64_t pixels) {
  if (!Piece<L, T>::kColumnar) return activate<kSilu, true>(part, out, t, x, a, b, pixels);
  for (int64_t i = 0; i < pixels; i += kTogether) {
    const int64_t count = smaller(kTogether, pixels - i), k = i * part.stride;
    activate<kSilu, true>(part, out + k, t + k, x + k, a, b, count);
    accumulate<false>(part, out + k, x + k, count);
  }
}

// An image of the part, row by row: y or D P t with its margins, or D of what is in the rows of t and in its margins.
template <Product kProduct, bool kSilu, Layout L, class T, class S>
LSDA_INLINE void image(Part<L, T>& part, const Frame& f, S* out, const S* t, const S* x, const T* a, const T* b) {
  const int64_t step = f.columns * part.pixel.stride, pitch = f.padded_columns() * part.pixel.stride;
  S* to = kProduct == Product::vjp ? out : out + f.margin * (pitch + part.pixel.stride);
  for (int64_t row = 0; row < f.rows; ++row, x += step) {
    const S* from = t + row * step;
    if (kProduct == Product::vjp) {
      if (f.margin) fold_line(f, part.pixel, to, t, row);
      weigh<kSilu>(part, to, f.margin ? to : from, x, a, b, f.columns);
      to += step;
      continue;
    }
    if (kProduct == Product::jvp) {
      tangent<kSilu>(part, to, from, x, a, b, f.columns);
    } else {
      activate<kSilu, false>(part, to, x, x, a, b, f.columns);
    }
    pad_sides(f, part.pixel, to);
    to += pitch;
  }
  if (kProduct != Product::vjp) pad_poles(f, part.pixel, out);
}

// Slices of one member, found by `locate`.
template <Product kProduct, bool kSilu, Layout L, class T, class S>
LSDA_INLINE void norm_part(Part<L, T>& part, const NormParams<T, S>& p) {
  constexpr bool back = kProduct == Product::vjp;
  const int64_t plain = p.frame.places(), padded = p.frame.padded_rows() * p.frame.padded_columns();
  S* out = p.out + (back ? part.plain : part.padded);
  const S *x = p.x + part.plain, *t = p.t + (back ? part.padded : part.plain);
  const T *a = p.a + part.affine, *b = p.b + part.affine;
  if (kProduct == Product::value) {
    statistics(part, x, p.eps);
    keep(part, p.kept + part.kept);
  } else {
    recall(part, p.kept + part.kept);
  }
  if (kProduct == Product::jvp) moments(part, t, x);
  if (back && Piece<L, T>::kColumnar) {
    centre(part);
    clear(part);
  }
  for (int64_t i = 0; i < part.images; ++i) {
    image<kProduct, kSilu>(part, p.frame, out + i * (back ? plain : padded), t + i * (back ? padded : plain),
                           x + i * plain, a + i, b + i);
  }
  if (!back) return;
  if (Piece<L, T>::kColumnar) {
    gather(part);
    average(part);
  } else {
    moments(part, out, x);
  }
  if (p.add) return project<true>(part, out, out, x, p.add + part.plain);
  project<false>(part, out, out, x, x);
}

template <Product kProduct, bool kSilu, Layout L, class T, class S>
LSDA_INLINE void norm_slices(const NormParams<T, S>& p, int64_t first, int64_t last) {
  Part<L, T> part;
  const int64_t step = L == Layout::last ? last - first : 1;
  for (int64_t slice = first; slice < last; slice += step) {
    locate(part, p, slice, slice + step);
    norm_part<kProduct, kSilu>(part, p);
  }
}

template <Product kProduct, class T, class S>
LSDA_INLINE void norm_product(const NormParams<T, S>& p, int64_t first, int64_t last) {
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

template <class T, class S>
LSDA_INLINE void norm_value(const NormParams<T, S>& p, int64_t first, int64_t last) {
  norm_product<Product::value>(p, first, last);
}

template <class T, class S>
LSDA_INLINE void norm_jvp(const NormParams<T, S>& p, int64_t first, int64_t last) {
  norm_product<Product::jvp>(p, first, last);
}

template <class T, class S>
LSDA_INLINE void norm_vjp(const NormParams<T, S>& p, int64_t first, int64_t last) {
  norm_product<Product::vjp>(p, first, last);
}

}  // namespace core
}  // namespace lsda
