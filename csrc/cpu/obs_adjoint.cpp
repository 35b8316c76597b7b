// SPDX-License-Identifier: Apache-2.0
#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/sorted.h"

namespace lsda {

LSDA_DISPATCH(obs_adjoint)

namespace cpu {
namespace {

template <class T>
void obs_adjoint_tiles(const AdjointParams<T>& a, int threads) {
  const int64_t tiles = blocks_of(a.cells, kTile);
  const int64_t together = members_together(tiles, a.members, threads), groups = blocks_of(a.members, together);
  parallel_for(tiles * groups, threads, [&](int64_t task) {
    const int64_t tile = task / groups, first = task % groups * together;
    const int64_t last = smaller(a.members, first + together);
    for (int64_t m = first; m < last; ++m) dispatch::obs_adjoint(a, m, tile);
  });
}

}  // namespace

template <class T>
void obs_adjoint(const AdjointParams<T>& a, int threads) {
  threads = useful_threads(threads, a.members * (a.cells + a.tile[3 * blocks_of(a.cells, kTile) + 2]));
  if (a.row == nullptr) return obs_adjoint_tiles(a, threads);
  sorted_members<T>(a.members, a.observations, [&](T* sorted, int64_t first, int64_t members) {
    permute(sorted, a.r + first * a.observations, a.row, members, a.observations, threads);
    AdjointParams<T> part = a;
    part.members = members;
    part.r = sorted;
    part.x = a.x + first * a.cells;
    obs_adjoint_tiles(part, threads);
  });
}

template void obs_adjoint(const AdjointParams<float>&, int);
template void obs_adjoint(const AdjointParams<double>&, int);

}  // namespace cpu
}  // namespace lsda
