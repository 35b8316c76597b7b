// SPDX-License-Identifier: Apache-2.0
// obs_residual in CUDA C++ against the CPU's: r and slope the same bits, the cost to rounding, as its sum has another
// order; and a member alone costs what it costs in company, to the bit.
#pragma once

#include "cuda_checks.h"

// With precision and noise or without.
template <class T>
void residual(const lsda::ProjectParams<T>& project, lsda::Robust kind, bool given) {
  const int64_t M = project.members, P = project.observations, cpu_blocks = lsda::blocks_of(P, lsda::kObservationBlock);
  const int64_t slopes = kind == lsda::Robust::gaussian ? 0 : M * P;
  auto target = random<T>(P), precision = random<T>(P), noise = random<T>(M * P);
  if (given && P) precision[P / 2] = T(0), target[P / 2] = std::numeric_limits<T>::quiet_NaN();
  Block<T> r(M * P), slope(slopes), cost(M), r0(M * P), slope0(slopes), alone(1);
  Block<double> twice(M * lsda::blocks_of(P, lsda::cuda::kResidualBlock)), twice0(M * cpu_blocks);

  lsda::ResidualParams<T> a = {project, slope.get(), twice.get(), target.get(), nullptr, nullptr, kind, 0.5};
  if (given) a.precision = precision.get(), a.noise = noise.get();
  a.project.y = r.get();
  launched(lsda::cuda::obs_residual(a, cost.get(), kStream));

  lsda::ResidualParams<T> b = a;
  b.project.y = r0.get(), b.slope = slope0.get(), b.twice = twice0.get();
  for (int64_t m = 0; m < M; ++m) {
    double sum = 0;
    for (int64_t block = 0; block < cpu_blocks; ++block) {
      lsda::core::obs_residual(b, m, block);
      sum += twice0[m * cpu_blocks + block];
    }
    expect(close(cost[m], 0.5 * sum), "the cost of obs_residual");
  }
  expect(same(r, r0) && same(slope, slope0), "obs_residual");

  if (M == 0) return;
  a.project.members = 1, a.project.x += (M - 1) * project.cells, a.project.y += (M - 1) * P;
  if (slopes) a.slope += (M - 1) * P;
  if (given) a.noise += (M - 1) * P;
  launched(lsda::cuda::obs_residual(a, alone.get(), kStream));
  expect(std::memcmp(alone.get(), &cost[M - 1], sizeof(T)) == 0, "the cost of a member alone");
}
