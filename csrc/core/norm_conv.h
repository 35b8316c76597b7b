// SPDX-License-Identifier: Apache-2.0
// A normalisation and the convolution behind it, and the products of their derivative: what lies between the two, an
// image with margins, stays in cache. Or the convolution alone, of images continued in their margins, and its
// transpose.
#pragma once

#include "core/conv.h"
#include "core/norm.h"

namespace lsda {

template <class T>
struct NormConvParams {
  NormParams<T> norm;  // channels last; `out` is where a VJP goes, `t` what a JVP is of
  T* out;              // of a value or a JVP
  const T* u;          // what a VJP is of
  // The weight as in core/conv.h, of a VJP that of the transpose; bias, of a value alone, and add may be null.
  const T *weight, *bias, *add;
  int64_t filters;  // of the convolution itself
  T* scratch;       // between_size
  bool bare;        // without a norm: t to out, or u to norm.out, to which nothing is added
};

namespace core {

// Columns of what a transposed convolution makes, where longitude wraps with the margins folded already, and of what it
// reads.
constexpr int64_t made_columns(const Frame& f) { return f.columns + (f.periodic ? 0 : 2 * f.margin); }
constexpr int64_t read_columns(const Frame& f) { return made_columns(f) + 2 * f.margin; }

constexpr int64_t padded_size(const Frame& f, int64_t channels) {
  return f.padded_rows() * f.padded_columns() * channels;
}
// Rows of zeros above it and below, where core/winograd.h then takes it; elsewhere there are none, and none are read.
constexpr int64_t zero_rows(const Frame& f) {
  return f.margin == 1 && f.rows % 2 == 0 && made_columns(f) % 2 == 0 ? 2 : 0;
}
constexpr int64_t read_size(const Frame& f, int64_t filters) {
  return (f.rows + 2 * zero_rows(f)) * read_columns(f) * filters;
}

// Numbers between norm and convolution, at least: of an image a thread with margins, and of a VJP what the convolution
// reads; and what core/winograd.h makes of the weight, and for each thread of an image, whichever way it goes.
constexpr int64_t between_size(const Frame& f, int64_t channels, int64_t filters, int64_t threads) {
  const int64_t columns = made_columns(f), most = channels > filters ? channels : filters;
  const int64_t windows = 8 * columns * (channels + filters) + 4 * (columns + 2) * most;
  return 16 * channels * filters + threads * (padded_size(f, channels) + read_size(f, filters) + windows);
}

// An image as a transposed convolution reads it: continued where longitude wraps, with zeros around it elsewhere.
template <class T>
LSDA_INLINE void spread(const Frame& f, int64_t filters, T* out, const T* u) {
  const int64_t side = (read_columns(f) - f.columns) / 2 * filters, width = f.columns * filters;
  const int64_t zeros = zero_rows(f) * (width + 2 * side);
  std::memset(out, 0, static_cast<size_t>(zeros) * sizeof(T));
  out += zeros;
  for (int64_t row = 0; row < f.rows; ++row, u += width) {
    const size_t edge = static_cast<size_t>(side) * sizeof(T);
    if (f.periodic) {
      std::memcpy(out, u + width - side, edge);
      std::memcpy(out + side + width, u, edge);
    } else {
      std::memset(out, 0, edge);
      std::memset(out + side + width, 0, edge);
    }
    std::memcpy(out + side, u, static_cast<size_t>(width) * sizeof(T));
    out += width + 2 * side;
  }
  std::memset(out, 0, static_cast<size_t>(zeros) * sizeof(T));
}

// The margins west and east of a padded image, zero.
template <class T>
LSDA_INLINE void clear_sides(const Frame& f, int64_t channels, T* image) {
  const int64_t edge = f.margin * channels, pitch = f.padded_columns() * channels;
  for (int64_t row = 0; row < f.padded_rows(); ++row, image += pitch) {
    std::memset(image, 0, static_cast<size_t>(edge) * sizeof(T));
    std::memset(image + pitch - edge, 0, static_cast<size_t>(edge) * sizeof(T));
  }
}

}  // namespace core
}  // namespace lsda
