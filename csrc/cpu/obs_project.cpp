// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace lsda {

LSDA_DISPATCH(obs_project)

namespace cpu {

template <class T>
void obs_project(ProjectParams<T> a, T* cost, int threads) noexcept {
  threads = useful_threads(threads, a.members * a.observations * a.points);
  const int64_t blocks = blocks_of(a.observations, kObservationBlock);
  const int64_t together = members_together(blocks, a.members, threads), groups = blocks_of(a.members, together);
  std::vector<double> squares(cost ? static_cast<size_t>(a.members * blocks) : 0);
  if (cost) a.squares = squares.data();
  parallel_for(blocks * groups, threads, [&](int64_t task) {
    const int64_t block = task / groups, first = task % groups * together;
    const int64_t last = smaller(a.members, first + together);
    for (int64_t m = first; m < last; ++m) dispatch::obs_project(a, m, block);
  });
  if (!cost) return;
  for (int64_t m = 0; m < a.members; ++m) {
    double sum = 0.0;
    for (int64_t block = 0; block < blocks; ++block) sum += squares[static_cast<size_t>(m * blocks + block)];
    cost[m] = static_cast<T>(0.5 * sum);
  }
}

template void obs_project(ProjectParams<float>, float*, int) noexcept;
template void obs_project(ProjectParams<double>, double*, int) noexcept;

}  // namespace cpu
}  // namespace lsda
