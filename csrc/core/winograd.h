// SPDX-License-Identifier: Apache-2.0
// Convolutions of 3 x 3 places by 16 products for 4 of the result's places, where plain ones take 36 (Lavin & Gray
// 2016, arXiv:1509.09308, F(2 x 2, 3 x 3)): windows of 4 x 4 and the weight are transformed, multiplied channel by
// channel, and the sums over the channels transformed back. All of it in sums and halves: the error is about twice a
// plain one's.
#pragma once

#include "core/conv.h"

namespace lsda {

// Numbers of a transformed weight, of the windows of two rows of the result with the sums of their products, and of the
// rows they are made of.
template <class T>
constexpr int64_t winograd_weights(const ConvParams<T>& p) {
  return 16 * p.channels * p.filters;
}
template <class T>
constexpr int64_t winograd_windows(const ConvParams<T>& p) {
  return 16 * (p.columns / 2) * (p.channels + p.filters) + 4 * (p.columns + 2) * p.channels;
}

// Whether this way can be taken.
template <class T>
constexpr bool winograd_takes(const ConvParams<T>& p) {
  return p.size == 3 && p.before == 0 && p.rows % 2 == 0 && p.columns % 2 == 0;
}

namespace core {

// B' d, of four rows of n numbers.
template <class T>
LSDA_INLINE void winograd_spread(T* __restrict out, int64_t step, const T* __restrict in, int64_t pitch, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T d0 = in[i], d1 = in[pitch + i], d2 = in[2 * pitch + i], d3 = in[3 * pitch + i];
    out[i] = d0 - d2;
    out[step + i] = d1 + d2;
    out[2 * step + i] = d2 - d1;
    out[3 * step + i] = d1 - d3;
  }
}

// The windows of two rows of the result, (16, columns / 2, channels); `rows` has room for four of `in`.
template <class T>
LSDA_INLINE void winograd_windows_of(const ConvParams<T>& p, T* windows, T* rows, const T* in) {
  const int64_t C = p.channels, tiles = p.columns / 2, width = (p.columns + 2) * C, step = tiles * C;
  winograd_spread(rows, width, in, p.in_pitch, width);
  for (int64_t r = 0; r < 4; ++r) {
    for (int64_t j = 0; j < tiles; ++j) {
      winograd_spread(windows + (4 * r * tiles + j) * C, step, rows + r * width + 2 * j * C, C, C);
    }
  }
}

// A block of filters of the weight, transformed: (16, filters / 16, channels, 16).
template <class T>
LSDA_INLINE void winograd_weight(const ConvParams<T>& p, T* __restrict out, int64_t block) {
  constexpr int64_t n = kTogetherColumns;
  const int64_t C = p.channels, step = p.filters / n * C * n;
  for (int64_t c = 0; c < C; ++c) {
    const T* __restrict w = p.weight + (block * 9 * C + c) * n;
    T* __restrict u = out + (block * C + c) * n;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      T rows[4][3];
      for (int64_t x = 0; x < 3; ++x) {
        const T g0 = w[x * C * n + i], g1 = w[(3 + x) * C * n + i], g2 = w[(6 + x) * C * n + i];
        rows[0][x] = g0;
        rows[1][x] = T(0.5) * (g0 + g1 + g2);
        rows[2][x] = T(0.5) * (g0 - g1 + g2);
        rows[3][x] = g2;
      }
      for (int64_t r = 0; r < 4; ++r) {
        u[4 * r * step + i] = rows[r][0];
        u[(4 * r + 1) * step + i] = T(0.5) * (rows[r][0] + rows[r][1] + rows[r][2]);
        u[(4 * r + 2) * step + i] = T(0.5) * (rows[r][0] - rows[r][1] + rows[r][2]);
        u[(4 * r + 3) * step + i] = rows[r][2];
      }
    }
  }
}

// Two rows of the result from the sums of the products, (16, columns / 2, filters).
template <bool kBias, bool kAdd, class T>
LSDA_INLINE void winograd_rows(const ConvParams<T>& p, T* out, const T* add, const T* sums) {
  const int64_t D = p.filters, tiles = p.columns / 2, step = tiles * D;
  for (int64_t j = 0; j < tiles; ++j) {
    const T* __restrict m = sums + j * D;
    for (int64_t row = 0; row < 2; ++row) {
      T *left = out + row * p.out_pitch + 2 * j * D, *right = left + D;
      const T *more = add + row * p.out_pitch + 2 * j * D, *bias = p.bias;
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) {
        T s[4];
        for (int64_t c = 0; c < 4; ++c) {
          const T m1 = m[(4 + c) * step + i], m2 = m[(8 + c) * step + i];
          s[c] = row == 0 ? m[c * step + i] + m1 + m2 : m1 - m2 - m[(12 + c) * step + i];
        }
        T one = s[0] + s[1] + s[2], two = s[1] - s[2] - s[3];
        if (kBias) one = one + bias[i], two = two + bias[i];
        if (kAdd) one = one + more[i], two = two + more[D + i];
        left[i] = one;
        right[i] = two;
      }
    }
  }
}

template <class T>
LSDA_INLINE void winograd_result(const ConvParams<T>& p, T* out, const T* add, const T* sums) {
  if (p.bias)
    return p.add ? winograd_rows<true, true>(p, out, add, sums) : winograd_rows<true, false>(p, out, add, sums);
  return p.add ? winograd_rows<false, true>(p, out, add, sums) : winograd_rows<false, false>(p, out, add, sums);
}

}  // namespace core
}  // namespace lsda
