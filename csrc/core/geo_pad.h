// SPDX-License-Identifier: Apache-2.0
// Padding of images that goes on over the date line and the poles, and its adjoint. Beyond a pole that the grid reaches
// lie the rows before it, half way round; every other edge is repeated. On a torus the first row follows the last. A
// pixel is a run of numbers side by side: the channels of an image with channels last, one number of a plane.
#pragma once

#include <cstring>

#include "core/base.h"

namespace lsda {

template <class T>
struct PadParams {
  T* out;
  const T* in;
  int64_t images, rows, columns, pixel, margin;  // rows and columns without the margin
  bool periodic, north, south, torus;
};

namespace core {

// The row that a padded row is a copy of, and how far it is turned.
struct PadRow {
  int64_t source, turn;
};

template <class T>
LSDA_INLINE PadRow pad_row(const PadParams<T>& a, int64_t padded) {
  const int64_t row = padded - a.margin, over = row - a.rows, half = a.columns / 2;
  if (a.torus) return {(row + a.rows) % a.rows, 0};
  if (row < 0) return a.periodic && a.north ? PadRow{-row - 1, half} : PadRow{0, 0};
  if (over >= 0) return a.periodic && a.south ? PadRow{a.rows - 1 - over, half} : PadRow{a.rows - 1, 0};
  return {row, 0};
}

// Row `padded` of an image (rows, columns, pixel), with its margins.
template <class T>
LSDA_INLINE void pad_one(const PadParams<T>& a, int64_t image, int64_t padded) {
  const PadRow row = pad_row(a, padded);
  const int64_t width = a.columns * a.pixel, edge = a.margin * a.pixel, turn = row.turn * a.pixel;
  const T* in = a.in + (image * a.rows + row.source) * width;
  T* out = a.out + (image * (a.rows + 2 * a.margin) + padded) * (width + 2 * edge) + edge;
  const auto copy = [](T* to, const T* from, int64_t count) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
  };
  copy(out + turn, in, width - turn);
  copy(out, in + width - turn, turn);
  if (a.periodic) {
    copy(out - edge, out + width - edge, edge);
    copy(out + width, out, edge);
    return;
  }
  for (int64_t k = 0; k < edge; k += a.pixel) {
    copy(out - edge + k, out, a.pixel);
    copy(out + width + k, out + width - a.pixel, a.pixel);
  }
}

template <class T>
LSDA_INLINE void pad_add(T* out, const T* in, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] += in[i];
}

// Adds what lies in the margins of a padded row to the row `out` that it is a copy of; `in` is behind the first margin.
template <class T>
LSDA_INLINE void fold_edges(const PadParams<T>& a, T* out, const T* in, int64_t turn) {
  const int64_t columns = a.columns, n = a.margin;
  for (int64_t k = 0; k < n; ++k) {
    const int64_t west = a.periodic ? columns - n + k : 0, east = a.periodic ? k : columns - 1;
    pad_add(out + (west + columns - turn) % columns * a.pixel, in + (k - n) * a.pixel, a.pixel);
    pad_add(out + (east + columns - turn) % columns * a.pixel, in + (columns + k) * a.pixel, a.pixel);
  }
}

// Row `row` of the adjoint: the sum of all that are copies of it.
template <class T>
LSDA_INLINE void fold_one(const PadParams<T>& a, int64_t image, int64_t row) {
  const int64_t width = a.columns * a.pixel, edge = a.margin * a.pixel, padded = a.rows + 2 * a.margin;
  T* out = a.out + (image * a.rows + row) * width;
  const T* in = a.in + image * padded * (width + 2 * edge) + edge;
  const T* own = in + (row + a.margin) * (width + 2 * edge);
  std::memcpy(out, own, static_cast<size_t>(width) * sizeof(T));
  fold_edges(a, out, own, 0);
  for (int64_t i = 0; i < 2 * a.margin; ++i) {
    const int64_t beyond = i < a.margin ? i : a.rows + i;
    const PadRow copied = pad_row(a, beyond);
    if (copied.source != row) continue;
    const T* other = in + beyond * (width + 2 * edge);
    const int64_t turn = copied.turn * a.pixel;
    pad_add(out, other + turn, width - turn);
    pad_add(out + width - turn, other, turn);
    fold_edges(a, out, other, copied.turn);
  }
}

template <class T>
LSDA_INLINE void geo_fold(const PadParams<T>& a, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) fold_one(a, i / a.rows, i % a.rows);
}

}  // namespace core
}  // namespace lsda
