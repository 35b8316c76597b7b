// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace lsda {

LSDA_DISPATCH(cg_curvature)
LSDA_DISPATCH(cg_advance)
LSDA_DISPATCH(cg_turn)

namespace cpu {
namespace {

// term(block) of every block, added in their order.
template <class F>
double sum_blocks(std::vector<double>& partial, int threads, const F& term) {
  const auto blocks = static_cast<int64_t>(partial.size());
  parallel_for(blocks, threads, [&](int64_t block) { partial[static_cast<size_t>(block)] = term(block); });
  double sum = 0.0;
  for (double value : partial) sum += value;
  return sum;
}

// A member that stands still keeps its values.
template <class T>
void keep(const CgParams<T>& a, int64_t m) {
  const int64_t offset = m * a.size;
  if (a.x != a.x0) std::copy_n(a.x0 + offset, a.size, a.x + offset);
  if (a.r != a.r0) std::copy_n(a.r0 + offset, a.size, a.r + offset);
  if (a.p != a.p0) std::copy_n(a.p0 + offset, a.size, a.p + offset);
  a.rr[m] = a.rr0[m];
}

template <class T>
void cg_member(const CgParams<T>& a, int64_t m, int threads) {
  const int64_t blocks = blocks_of(a.size);
  std::vector<double> partial(static_cast<size_t>(blocks));
  const T rr = a.rr0[m];
  if (!(rr > a.limit[m])) return keep(a, m);
  const T curvature =
      static_cast<T>(sum_blocks(partial, threads, [&](int64_t block) { return dispatch::cg_curvature(a, m, block); }));
  if (!(curvature > T(0))) return keep(a, m);
  const T step = rr / curvature;
  const T rr_new = static_cast<T>(
      sum_blocks(partial, threads, [&](int64_t block) { return dispatch::cg_advance(a, m, block, step); }));
  const T turn = rr_new / rr;
  parallel_for(blocks, threads, [&](int64_t block) { dispatch::cg_turn(a, m, block, turn); });
  a.rr[m] = rr_new;
}

}  // namespace

// Whole members on a thread each, which keeps a member in cache; the blocks of one when there are fewer than threads.
template <class T>
void cg_step(const CgParams<T>& a, int threads) noexcept {
  const bool whole = a.members >= threads;
  const int outer = whole ? useful_threads(threads, a.members * a.size) : 1;
  const int inner = whole ? 1 : useful_threads(threads, a.size);
  parallel_for(a.members, outer, [&](int64_t m) { cg_member(a, m, inner); });
}

template void cg_step(const CgParams<float>&, int) noexcept;
template void cg_step(const CgParams<double>&, int) noexcept;

}  // namespace cpu
}  // namespace lsda
