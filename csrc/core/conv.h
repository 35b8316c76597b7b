// SPDX-License-Identifier: Apache-2.0
// Convolution of images with channels last, as matrix products: what a row of the window holds lies side by side.
#pragma once

#include "core/product.h"

namespace lsda {

// The weight is (filters / 16, size, size channels, 16).
template <class T>
struct ConvParams {
  T* out;
  const T *in, *weight, *bias, *add;  // bias and add, which lies as out does, may be null
  int64_t images, rows, columns;      // of out
  int64_t channels, filters, size;
  int64_t in_rows, before;  // a row r of out sees rows r - before to r - before + size - 1 of in, those that are there
  int64_t in_pitch, in_image, out_pitch, out_image;
  T *transformed, *windows;  // of core/winograd.h where it takes this: the weight, and room for each thread
};

namespace core {

// A row of all images.
template <class T>
LSDA_INLINE ProductParams<T> conv_row(const ConvParams<T>& p, int64_t i) {
  const int64_t image = i / p.rows, row = i % p.rows, top = row - p.before, taps = p.size * p.channels;
  const int64_t from = top < 0 ? -top : 0, to = smaller(p.size, p.in_rows - top), part = taps * kTogetherColumns;
  const int64_t place = image * p.out_image + row * p.out_pitch;
  return {p.out + place,
          p.in + image * p.in_image + (top + from) * p.in_pitch,
          p.weight + from * part,
          p.bias,
          p.add ? p.add + place : nullptr,
          p.columns,
          p.filters,
          taps,
          to - from,
          p.filters,
          p.channels,
          p.in_pitch,
          part,
          kTogetherColumns,
          p.size * part};
}

}  // namespace core
}  // namespace lsda
