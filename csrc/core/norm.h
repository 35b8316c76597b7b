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

// out = P t, of known moments, and what is added.
template <bool kAdd, Layout L, class T, class S>
LSDA_INLINE void project(Piece<L, T>& piece, S* out, const S* t, const S* x, const S* add) {
  constexpr bool many = Piece<L, T>::kColumnar;
  const T *mean = piece.mean, *scale = piece.scale, *m1 = piece.m1, *m2 = piece.m2;
  const T mean0 = mean[0], scale0 = scale[0], m10 = m1[0], m20 = m2[0];
  const int64_t segments = many ? piece.segments : 1, length = many ? piece.length : piece.size;
  for (int64_t s = 0; s < segments; ++s, out += piece.stride, t += piece.stride, x += piece.stride) {
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) {
      const T r = many ? scale[i] : scale0, normal = (x[i] - (many ? mean[i] : mean0)) * r;
      const T projected = r * (t[i] - (many ? m1[i] : m10) - normal * (many ? m2[i] : m20));
      out[i] = kAdd ? projected + add[i] : projected;
    }
    if (kAdd) add += piece.stride;
  }
}

// out = y, or D t, of the numbers of `pixels` places, all of one channel, or of those of a token.
template <bool kSilu, bool kSlope, Layout L, class T, class S>
LSDA_INLINE void activate(const Piece<L, T>& piece, S* out, const S* t, const S* x, const T* a, const T* b,
                          int64_t pixels) {
  constexpr bool many = Piece<L, T>::kColumnar, run = Piece<L, T>::kRun;
  const T *mean = piece.mean, *scale = piece.scale;
  const T mean0 = mean[0], scale0 = scale[0], a0 = a[0], b0 = b[0];
  const int64_t segments = many ? pixels : 1, length = run ? pixels : piece.length;
  for (int64_t s = 0; s < segments; ++s, out += piece.stride, t += piece.stride, x += piece.stride) {
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) {
      const T ai = run ? a0 : a[i];
      if (kSlope && !kSilu) {
        out[i] = t[i] * ai;
      } else {
        const T p = (x[i] - (many ? mean[i] : mean0)) * (many ? scale[i] : scale0) * ai + (run ? b0 : b[i]);
        out[i] = kSlope ? t[i] * (ai * silu_slope(p)) : kSilu ? silu(p) : p;
      }
    }
  }
}

// out = D P t, likewise.
template <bool kSilu, Layout L, class T, class S>
LSDA_INLINE void tangent(const Piece<L, T>& piece, S* out, const S* t, const S* x, const T* a, const T* b,
                         int64_t pixels) {
  constexpr bool many = Piece<L, T>::kColumnar, run = Piece<L, T>::kRun;
  const T *mean = piece.mean, *scale = piece.scale, *m1 = piece.m1, *m2 = piece.m2;
  const T mean0 = mean[0], scale0 = scale[0], m10 = m1[0], m20 = m2[0], a0 = a[0], b0 = b[0];
  const int64_t segments = many ? pixels : 1, length = run ? pixels : piece.length;
  for (int64_t s = 0; s < segments; ++s, out += piece.stride, t += piece.stride, x += piece.stride) {
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) {
      const T r = many ? scale[i] : scale0, normal = (x[i] - (many ? mean[i] : mean0)) * r, ai = run ? a0 : a[i];
      const T projected = r * (t[i] - (many ? m1[i] : m10) - normal * (many ? m2[i] : m20));
      out[i] = projected * (kSilu ? ai * silu_slope(normal * ai + (run ? b0 : b[i])) : ai);
    }
  }
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
