// SPDX-License-Identifier: Apache-2.0
#include "core/restricted_solve.h"

#include <algorithm>
#include <memory>

#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace lsda {

LSDA_DISPATCH(restricted_begin)
LSDA_DISPATCH(restricted_last)
LSDA_DISPATCH(sloped)

namespace cpu {
namespace {

template <class T>
std::unique_ptr<T[]> room(int64_t size) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(size)]);
}

}  // namespace

template <class T>
void restricted_solve(const SolveParams<T>& a, int threads) {
  const int64_t M = a.members, P = a.size, n = P + 1, wide = a.head.places * a.head.features;
  const auto r = room<T>(2 * M * n), p = room<T>(2 * M * n), rr = room<T>(M), w = room<T>(M * P),
             cells = room<T>(M * a.adjoint.cells), latent = room<T>(M * wide),
             scratch = room<T>(zonal_scratch(a.zonal));
  ProjectParams<T> project = a.project;
  AdjointParams<T> adjoint = a.adjoint;
  ZonalParams<T> zonal = a.zonal;
  project.x = adjoint.x = cells.get();
  project.y = w.get();
  adjoint.r = w.get();
  zonal.x = zonal.out = latent.get();
  zonal.scratch = scratch.get();
  const RestrictedParams<T> step = {a.x,      r.get(), p.get(), rr.get(), a.x, r.get(), p.get(),
                                    rr.get(), w.get(), a.f,     a.limit,  M,   n};
  const int few = useful_threads(threads, 6 * M * n);
  std::copy(a.rr, a.rr + M, rr.get());
  T *residual = r.get(), *direction = p.get();
  parallel_for(M, few, [&](int64_t m) { dispatch::restricted_begin(a, residual, direction, m); });
  for (int64_t i = 0; i + 1 < a.iterations; ++i) {
    const auto weigh = [&](const T* from, int64_t pitch, T factor) {
      parallel_for(M, few, [&](int64_t m) {
        T* out = w.get() + m * P;
        const T *in = from + m * pitch, *slope = a.slope + m * P;
        dispatch::sloped(out, in, slope, factor, P);
      });
    };
    weigh(p.get() + M * n, n, T(1));
    obs_adjoint(adjoint, threads);
    head_adjoint(a.head, cells.get(), latent.get(), threads);
    cpu::zonal(zonal, threads);
    head_project(a.head, latent.get(), cells.get(), threads);
    obs_project(project, threads);
    weigh(w.get(), P, static_cast<T>(a.factor));
    restricted_step(step, threads);
  }
  if (a.iterations > 0) parallel_for(M, few, [&](int64_t m) { dispatch::restricted_last(step, m); });
}

template void restricted_solve(const SolveParams<float>&, int);
template void restricted_solve(const SolveParams<double>&, int);

}  // namespace cpu
}  // namespace lsda
