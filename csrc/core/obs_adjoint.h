// SPDX-License-Identifier: Apache-2.0
// The transpose of obs_project as a gather: x[m, c] = sum over the entries e of cell c of weight[e] r[m,
// observation[e]].
//
// The cells are cut into tiles. In a tile the touched cells are sorted by their number of entries, most first, and the
// entries lie in jagged diagonals: column j holds the j-th entry of every cell that has one, which are the first
// `length` cells of the tile. Loops are long, nothing is padded, no two threads write one cell, and every cell is
// summed in the order of its observations.
#pragma once

#include "core/base.h"

namespace lsda {

constexpr int64_t kTile = 2048;

template <class T>
struct AdjointParams {
  T* x;                        // (M, N)
  const T* r;                  // (M, P)
  const int32_t* cell;         // (touched cells), within their tile
  const int32_t* length;       // (columns)
  const int32_t* observation;  // (entries)
  const T* weight;             // (entries)
  const int64_t* tile;         // (tiles + 1, 3): where a tile begins in cell, length and entries
  int64_t members, cells, observations;
  const int32_t* row = nullptr;  // (P): observation e of the entries is row[e] of r; null for e itself
};

namespace core {

// One tile of one member.
template <class T>
LSDA_INLINE void obs_adjoint(const AdjointParams<T>& a, int64_t m, int64_t tile) {
  const int64_t *begin = a.tile + 3 * tile, *end = begin + 3;
  const T* __restrict r = a.r + m * a.observations;
  T* __restrict x = a.x + m * a.cells + tile * kTile;
  const int64_t width = smaller(kTile, a.cells - tile * kTile), touched = end[0] - begin[0];
  for (int64_t c = 0; c < width; ++c) x[c] = T(0);
  if (touched == 0) return;
  T sum[kTile];
  for (int64_t i = 0; i < touched; ++i) sum[i] = T(0);
  const int32_t* __restrict observation = a.observation + begin[2];
  const T* __restrict weight = a.weight + begin[2];
  for (int64_t column = begin[1]; column < end[1]; ++column) {
    const int64_t n = a.length[column];
    for (int64_t i = 0; i < n; ++i) sum[i] += weight[i] * r[observation[i]];
    observation += n;
    weight += n;
  }
  const int32_t* __restrict cell = a.cell + begin[0];
  for (int64_t i = 0; i < touched; ++i) x[cell[i]] = sum[i];
}

}  // namespace core
}  // namespace lsda
