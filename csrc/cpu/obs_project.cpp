// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/sorted.h"

namespace lsda {

LSDA_DISPATCH(obs_project)
LSDA_DISPATCH(obs_residual)

namespace cpu {
namespace {

// each(m, block) for every member and block of observations.
template <class T, class F>
void members_and_blocks(const ProjectParams<T>& a, int threads, const F& each) {
  threads = useful_threads(threads, a.members * a.observations * a.points);
  const int64_t blocks = blocks_of(a.observations, kObservationBlock);
  const int64_t together = members_together(blocks, a.members, threads), groups = blocks_of(a.members, together);
  parallel_for(blocks * groups, threads, [&](int64_t task) {
    const int64_t block = task / groups, first = task % groups * together;
    const int64_t last = smaller(a.members, first + together);
    for (int64_t m = first; m < last; ++m) each(m, block);
  });
}

}  // namespace

template <class T>
void obs_project(const ProjectParams<T>& a, int threads) {
  const auto in_order = [&](const ProjectParams<T>& part) {
    members_and_blocks(part, threads, [&](int64_t m, int64_t block) { dispatch::obs_project(part, m, block); });
  };
  if (a.rank == nullptr) return in_order(a);
  sorted_members<T>(a.members, a.observations, [&](T* sorted, int64_t first, int64_t members) {
    ProjectParams<T> part = a;
    part.members = members;
    part.x = a.x + first * a.cells;
    part.y = sorted;
    in_order(part);
    permute(a.y + first * a.observations, sorted, a.rank, members, a.observations, threads);
  });
}

template <class T>
void obs_residual(ResidualParams<T> a, T* cost, int threads) {
  const int64_t blocks = blocks_of(a.project.observations, kObservationBlock);
  std::vector<double> twice(static_cast<size_t>(a.project.members * blocks));
  a.twice = twice.data();
  if (a.project.rank != nullptr) obs_project(a.project, threads);
  members_and_blocks(a.project, threads, [&](int64_t m, int64_t block) { dispatch::obs_residual(a, m, block); });
  for (int64_t m = 0; m < a.project.members; ++m) {
    double sum = 0.0;
    for (int64_t block = 0; block < blocks; ++block) sum += twice[static_cast<size_t>(m * blocks + block)];
    cost[m] = static_cast<T>(0.5 * sum);
  }
}

template void obs_project(const ProjectParams<float>&, int);
template void obs_project(const ProjectParams<double>&, int);
template void obs_residual(ResidualParams<float>, float*, int);
template void obs_residual(ResidualParams<double>, double*, int);

}  // namespace cpu
}  // namespace lsda
