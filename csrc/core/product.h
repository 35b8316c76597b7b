// SPDX-License-Identifier: Apache-2.0
// Matrix products: a tile of a few rows and blocks of columns stays in registers while it runs through the taps of a
// part. Every number is summed in one order, whatever the tile: tap by tap, multiplication and addition fused where the
// file that includes this says so (cpu/contract.h), and part by part.
#pragma once

#include "core/base.h"

namespace lsda {

// Columns of a weight that are read together; their number is a multiple of it.
constexpr int64_t kTogetherColumns = 16;

// out[i, f] = bias[f] + add[i, f] + sum over parts and taps of in[i, part, tap] weight[part, tap, f]. A weight in
// float32 beside float64 is widened as it is read: where rows are few, products wait for it.
template <class T, class W = T>
struct ProductParams {
  T* out;
  const T* in;
  const W* weight;
  const T *bias, *add;                     // these may be null; add lies as out does
  int64_t rows, columns, taps, parts;      // parts: at least one
  int64_t out_row, in_row, in_part;        // from one to the next
  int64_t weight_part, weight_tap, block;  // block: from 16 columns to the next
};

namespace core {

// Vectors of 64 bytes, of which a narrower instruction set makes several.
template <class T>
struct Wide {
  typedef T type __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));
  static constexpr int kCount = 64 / static_cast<int>(sizeof(T)), kBlock = kTogetherColumns / kCount;
};

template <class T, class W>
LSDA_INLINE void widen(typename Wide<T>::type& to, const W* from) {
  typedef typename Wide<T>::type vec;
  if constexpr (sizeof(W) == sizeof(T)) {
    to = *reinterpret_cast<const vec*>(from);
  } else {
    typedef W narrow __attribute__((vector_size(64 / sizeof(T) * sizeof(W)), aligned(sizeof(W)), may_alias));
    to = __builtin_convertvector(*reinterpret_cast<const narrow*>(from), vec);
  }
}

template <int kBlocks, int kRows, class T, class W>
LSDA_INLINE void product_tile(const ProductParams<T, W>& p, int64_t row, int64_t column) {
  typedef typename Wide<T>::type vec;
  constexpr int kLanes = Wide<T>::kCount, kBlock = Wide<T>::kBlock, kVectors = kBlocks * kBlock;
  const W* weights = p.weight + column / kTogetherColumns * p.block;
  const T* ins = p.in + row * p.in_row;
  vec total[kRows][kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const vec start = p.bias ? *reinterpret_cast<const vec*>(p.bias + column + v * kLanes) : vec{};
    for (int i = 0; i < kRows; ++i) total[i][v] = start;
  }
  for (int64_t part = 0; part < p.parts; ++part, weights += p.weight_part, ins += p.in_part) {
    const W* weight = weights;
    const T* in = ins;
    vec sum[kRows][kVectors] = {};
    for (int64_t k = 0; k < p.taps; ++k, weight += p.weight_tap, ++in) {
      vec w[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        widen<T>(w[v], weight + v / kBlock * p.block + v % kBlock * kLanes);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const T x = in[i * p.in_row];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[i][v] += x * w[v];
      }
    }
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < kVectors; ++v) total[i][v] += sum[i][v];
    }
  }
  const int64_t place = row * p.out_row + column;
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = place + i * p.out_row + v * kLanes;
      if (p.add) total[i][v] += *reinterpret_cast<const vec*>(p.add + at);
      *reinterpret_cast<vec*>(p.out + at) = total[i][v];
    }
  }
}

// Rows from `row` on; those that fill no tile in smaller ones.
template <int kBlocks, int kRows, class T, class W>
LSDA_INLINE void product_rows(const ProductParams<T, W>& p, int64_t row, int64_t column) {
  for (; row + kRows <= p.rows; row += kRows) product_tile<kBlocks, kRows>(p, row, column);
  if constexpr (kRows > 1) {
    if (row < p.rows) product_rows<kBlocks, kRows / 2>(p, row, column);
  }
}

template <int kBlocks, int kRows, class T, class W>
LSDA_INLINE void product(const ProductParams<T, W>& p) {
  constexpr int64_t width = kBlocks * kTogetherColumns;
  int64_t column = 0;
  for (; column + width <= p.columns; column += width) product_rows<kBlocks, kRows>(p, 0, column);
  for (; kBlocks > 1 && column < p.columns; column += kTogetherColumns) product_rows<1, kRows>(p, 0, column);
}

}  // namespace core
}  // namespace lsda
