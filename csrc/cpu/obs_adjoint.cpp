// SPDX-License-Identifier: Apache-2.0
#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace lsda {

LSDA_DISPATCH(obs_adjoint)

namespace cpu {

template <class T>
void obs_adjoint(const AdjointParams<T>& a, int threads) noexcept {
  const int64_t tiles = blocks_of(a.cells, kTile);
  threads = useful_threads(threads, a.members * (a.cells + a.tile[3 * tiles + 2]));
  const int64_t together = members_together(tiles, a.members, threads), groups = blocks_of(a.members, together);
  parallel_for(tiles * groups, threads, [&](int64_t task) {
    const int64_t tile = task / groups, first = task % groups * together;
    const int64_t last = smaller(a.members, first + together);
    for (int64_t m = first; m < last; ++m) dispatch::obs_adjoint(a, m, tile);
  });
}

template void obs_adjoint(const AdjointParams<float>&, int) noexcept;
template void obs_adjoint(const AdjointParams<double>&, int) noexcept;

}  // namespace cpu
}  // namespace lsda
