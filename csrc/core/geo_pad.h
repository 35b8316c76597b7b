// SPDX-License-Identifier: Apache-2.0
// Padding of images that goes on over the date line and the poles, and its adjoint. Beyond a pole that the grid reaches
// lie the rows before it, half way round; every other edge is repeated. On a torus the first row follows the last. A
// pixel is a run of numbers side by side: the channels of an image with channels last, one number of a plane.
#pragma once

#include <cstring>

#include "core/base.h"

namespace lsda {

// An image without its margins, how wide they are, and how it goes on there.
struct Frame {
  int64_t rows, columns, margin;
  bool periodic, north, south, torus;

  constexpr int64_t places() const { return rows * columns; }
  constexpr int64_t padded_columns() const { return columns + 2 * margin; }
  constexpr int64_t padded_rows() const { return rows + 2 * margin; }
};

template <class T>
struct PadParams {
  T* out;
  const T* in;
  int64_t images, pixel;
  Frame frame;
};

namespace core {

// Numbers of a pixel that are worked on, and from one pixel to the next.
struct Pixel {
  int64_t length, stride;
};

// The row that a padded row is a copy of, and by how many columns it is turned.
struct PadRow {
  int64_t source, turn;
};

LSDA_INLINE PadRow pad_row(const Frame& f, int64_t padded) {
  const int64_t row = padded - f.margin, over = row - f.rows, half = f.columns / 2;
  if (f.torus) return {(row + f.rows) % f.rows, 0};
  if (row < 0) return f.periodic && f.north ? PadRow{-row - 1, half} : PadRow{0, 0};
  if (over >= 0) return f.periodic && f.south ? PadRow{f.rows - 1 - over, half} : PadRow{f.rows - 1, 0};
  return {row, 0};
}

// The i-th padded row that lies beyond the first or the last, of twice the margin.
LSDA_INLINE int64_t beyond(const Frame& f, int64_t i) { return i < f.margin ? i : f.rows + i; }

template <class T>
LSDA_INLINE void copy_pixels(Pixel pixel, T* out, const T* in, int64_t count) {
  const int64_t runs = pixel.length == pixel.stride ? 1 : count, length = pixel.length * (runs == 1 ? count : 1);
  for (int64_t i = 0; i < runs; ++i) {
    std::memcpy(out + i * pixel.stride, in + i * pixel.stride, static_cast<size_t>(length) * sizeof(T));
  }
}

template <class T>
LSDA_INLINE void add_pixels(Pixel pixel, T* out, const T* in, int64_t count) {
  const int64_t runs = pixel.length == pixel.stride ? 1 : count, length = pixel.length * (runs == 1 ? count : 1);
  for (int64_t i = 0; i < runs; ++i, out += pixel.stride, in += pixel.stride) {
#pragma omp simd
    for (int64_t k = 0; k < length; ++k) out[k] = out[k] + in[k];
  }
}

// The margins west and east of a row; `out` is behind the first.
template <class T>
LSDA_INLINE void pad_sides(const Frame& f, Pixel pixel, T* out) {
  const int64_t width = f.columns * pixel.stride, edge = f.margin * pixel.stride;
  if (f.periodic) {
    copy_pixels(pixel, out - edge, out + width - edge, f.margin);
    copy_pixels(pixel, out + width, out, f.margin);
    return;
  }
  for (int64_t k = 0; k < edge; k += pixel.stride) {
    copy_pixels(pixel, out - edge + k, out, 1);
    copy_pixels(pixel, out + width + k, out + width - pixel.stride, 1);
  }
}

// A row with its margins: `in` turned by so many columns; `out` is behind the first margin.
template <class T>
LSDA_INLINE void pad_line(const Frame& f, Pixel pixel, T* out, const T* in, int64_t turn) {
  copy_pixels(pixel, out + turn * pixel.stride, in, f.columns - turn);
  copy_pixels(pixel, out, in + (f.columns - turn) * pixel.stride, turn);
  pad_sides(f, pixel, out);
}

// The rows beyond the poles of an image whose own are there; `out` is its first pixel in the margins.
template <class T>
LSDA_INLINE void pad_poles(const Frame& f, Pixel pixel, T* out) {
  const int64_t pitch = f.padded_columns() * pixel.stride, edge = f.margin * pixel.stride;
  for (int64_t i = 0; i < 2 * f.margin; ++i) {
    const PadRow row = pad_row(f, beyond(f, i));
    pad_line(f, pixel, out + beyond(f, i) * pitch + edge, out + (f.margin + row.source) * pitch + edge, row.turn);
  }
}

// Adds what lies in the margins of a padded row to the row `out` that it is a copy of; `in` is behind the first margin.
template <class T>
LSDA_INLINE void fold_sides(const Frame& f, Pixel pixel, T* out, const T* in, int64_t turn) {
  const int64_t columns = f.columns, n = f.margin, stride = pixel.stride;
  for (int64_t k = 0; k < n; ++k) {
    const int64_t west = f.periodic ? columns - n + k : 0, east = f.periodic ? k : columns - 1;
    add_pixels(pixel, out + (west + columns - turn) % columns * stride, in + (k - n) * stride, 1);
    add_pixels(pixel, out + (east + columns - turn) % columns * stride, in + (columns + k) * stride, 1);
  }
}

// Row `row` of the adjoint, the sum of all that are copies of it, of a padded image `in`.
template <class T>
LSDA_INLINE void fold_line(const Frame& f, Pixel pixel, T* out, const T* in, int64_t row) {
  const int64_t pitch = f.padded_columns() * pixel.stride;
  in += f.margin * pixel.stride;
  const T* own = in + (row + f.margin) * pitch;
  copy_pixels(pixel, out, own, f.columns);
  fold_sides(f, pixel, out, own, 0);
  for (int64_t i = 0; i < 2 * f.margin; ++i) {
    const PadRow copied = pad_row(f, beyond(f, i));
    if (copied.source != row) continue;
    const T* other = in + beyond(f, i) * pitch;
    const int64_t rest = f.columns - copied.turn;
    add_pixels(pixel, out, other + copied.turn * pixel.stride, rest);
    add_pixels(pixel, out + rest * pixel.stride, other, copied.turn);
    fold_sides(f, pixel, out, other, copied.turn);
  }
}

// Padded rows [first, last) of all images.
template <class T>
LSDA_INLINE void geo_pad(const PadParams<T>& a, int64_t first, int64_t last) {
  const Frame& f = a.frame;
  const Pixel pixel = {a.pixel, a.pixel};
  for (int64_t i = first; i < last; ++i) {
    const PadRow row = pad_row(f, i % f.padded_rows());
    const T* in = a.in + (i / f.padded_rows() * f.rows + row.source) * f.columns * a.pixel;
    pad_line(f, pixel, a.out + (i * f.padded_columns() + f.margin) * a.pixel, in, row.turn);
  }
}

// Rows [first, last) of all images.
template <class T>
LSDA_INLINE void geo_fold(const PadParams<T>& a, int64_t first, int64_t last) {
  const Frame& f = a.frame;
  for (int64_t i = first; i < last; ++i) {
    const T* in = a.in + i / f.rows * f.padded_rows() * f.padded_columns() * a.pixel;
    fold_line(f, {a.pixel, a.pixel}, a.out + i * f.columns * a.pixel, in, i % f.rows);
  }
}

}  // namespace core
}  // namespace lsda
